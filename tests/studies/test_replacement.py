from pathlib import Path

import numpy as np
import pytest
import torch

from environments import EnvironmentSettings
from interpretability.ablations import ZeroAblation
from interpretability.episodes import play_episodes
from networks import CustomCNN, ResidualImpala, save_weights
from studies import Replacement
from studies.replacement_frames import Recorder, acts_of, compare_policies, explained_variance
from tests.figures import cut_off

EASY = EnvironmentSettings()
SMALL = {"fit_levels": 6, "num_levels": 4, "every": 4, "max_steps": 16, "kernel": 3, "precision": "fp32"}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def test_recorded_frames_belong_together_and_comparisons_know_what_changes_nothing() -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    recorder = Recorder(["conv4a"], range(10, 13), every=4)
    edits = list(recorder.seen.items())
    play_episodes(agent, range(10, 13), settings=EASY, edits=edits, max_steps=9, observer=recorder, num_environments=2,
                  precision="fp32")  # fmt: skip
    recorded = recorder.recorded()
    assert sorted(recorded.rows.tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    acts = acts_of(agent, "conv4a", recorded.frames, "fp32")
    torch.testing.assert_close(acts, recorded.acts["conv4a"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(agent(recorded.frames).logits.detach(), recorded.logits, atol=1e-5, rtol=1e-4)
    assert explained_variance(acts, acts, recorded.rows).value == 1
    assert explained_variance(acts.mean(0).expand_as(acts), acts, recorded.rows).value == pytest.approx(0, abs=1e-6)
    same = compare_policies(agent, ("conv4a", torch.nn.Identity()), recorded, "fp32")
    assert same["kl"].value == pytest.approx(0, abs=1e-9)
    assert same["action_agreement"].value == 1
    zeros = compare_policies(agent, ("conv4a", ZeroAblation()), recorded, "fp32")["kl"].value
    other = agent(recorded.frames, edits=[("conv4a", ZeroAblation())]).logits.detach().double()
    clean = recorded.logits.double().log_softmax(1)
    expected = (clean.exp() * (clean - other.log_softmax(1))).sum(1).mean().item()
    assert zeros == pytest.approx(expected, rel=1e-3)
    assert zeros > 0


@pytest.mark.parametrize("taps", [("conv4a", "fc1")])
def test_reports_every_arm(agent: str, taps: tuple[str, ...]) -> None:
    report = Replacement(agent, taps=taps, **SMALL).run()
    summary = report.summary
    for tap in taps:
        for arm in ("scene", "target", "plan", "mean", "shuffled"):
            assert summary[f"replacement/{tap}/{arm}/explained_variance"] <= 1
            assert summary[f"replacement/{tap}/{arm}/kl"] >= 0
        assert summary[f"replacement/{tap}/mean/explained_variance"] <= 1e-6
        assert np.isfinite(summary[f"replacement/{tap}/random_agent/explained_variance"])
        assert f"replacement/{tap}/plan/solved_low" in summary
        assert f"replacement/{tap}/shuffled/solved" not in summary
    assert len(report.tables["arms"].rows) == 1 + 5 * len(taps)
    assert set(report.figures) == {"arms", "maps"}
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert "written from labels" in report.pages["replacement"]
    assert set(report.films) == set(taps)
    assert f"../films/{taps[0]}.gif" in report.pages["replacement"]


def test_a_flat_tap_is_written_from_whole_cells_in_hard_mode_too(agent: str) -> None:
    study = Replacement(agent, taps=("fc1",), distribution_mode="hard", **SMALL | {"max_steps": 4, "num_levels": 2})
    recorded, _ = study._record(study.tested, "")
    codes = study._codes("fc1", recorded.states, recorded.acts["fc1"])
    assert codes["scene"].maps_mean.shape[-2:] == (13, 13)
    walls = codes["scene"].maps_mean[0] * len(recorded.states)
    torch.testing.assert_close(walls, walls.round(), atol=1e-4, rtol=0)


def test_a_tap_that_the_frame_gets_past_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "residual.safetensors", ResidualImpala(), {})
    residual = str(tmp_path / "residual.safetensors")
    taps = list(ResidualImpala().taps)
    inside = next(tap for tap in taps if tap.startswith("seq2.block1."))
    with pytest.raises(ValueError, match=rf"{inside}: the frame gets past this tap.* \(seqS.pool, seqS.blockB\)"):
        Replacement(residual, taps=(inside,))
    Replacement(residual, taps=("seq1.pool", "seq2.block1", "fc1"))


def test_refuses_what_cannot_be_written(agent: str) -> None:
    with pytest.raises(ValueError, match="CustomCNN ends in"):
        Replacement(agent, taps=("logits",))
    with pytest.raises(ValueError, match="taps is empty"):
        Replacement(agent, taps=())
    with pytest.raises(ValueError, match="kernel 4"):
        Replacement(agent, kernel=4)
    with pytest.raises(ValueError, match="every 0"):
        Replacement(agent, every=0)
