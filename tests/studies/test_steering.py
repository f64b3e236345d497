import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from environments.heist import ENTITIES
from interpretability.perception import SEEN
from networks import BilinearImpala, CustomCNN, save_weights
from studies import Steering
from studies.steering_mazes import Mazes, preferred_entities
from studies.steering_sources import matched
from tests.figures import cut_off

SMALL = {
    "num_levels": 12,
    "tuning_levels": 12,
    "fit_levels": 12,
    "comparison_levels": 2,
    "distances": (1, 1),
    "max_steps": 12,
    "precision": "fp32",
}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def test_counts_mazes_with_the_entity_in_which_another_is_touched_and_swaps_with_the_preferred() -> None:
    blue, gem, red = "blue_key", "gem", "red_key"
    pairs = [(blue, gem), (blue, gem), (red, gem), (blue, red)]
    touched = np.array([ENTITIES.index(blue), -1, ENTITIES.index(red), ENTITIES.index(blue)])
    mazes = Mazes([b""] * 4, pairs, touched)
    assert mazes.counted(gem) == [0, 2]
    assert mazes.counted(red) == [3]
    assert mazes.counted(blue) == []
    preferred = {name: SEEN[other] for name, other in preferred_entities(mazes).items()}
    assert preferred == {blue: red, gem: blue, red: blue, "green_key": blue}


def test_an_edit_that_does_next_to_nothing_redirects_nobody(agent: str) -> None:
    """The same noise as the unedited agent's, so that no counted maze is a success by construction."""
    report = Steering(agent, taps=("conv3a", "fc1"), strengths=(1e-9,), **SMALL).run()
    summary = report.summary
    counted = [entity for entity in SEEN if f"steering/{entity}/success" in summary]
    assert counted, "the test needs an agent that touches something"
    for entity in counted:
        for key in [key for key in summary if key.endswith(f"/{entity}/success")]:
            for arm in ("success", "random_direction", "random_agent"):
                assert summary[key.replace("success", arm)] == 0
            assert summary[key.replace("success", "kl")] == pytest.approx(0, abs=1e-6)
            assert summary[key.replace("success", "strength")] == 1e-9
    rows = report.tables["methods"].rows
    assert len(rows) == 2 * 2 * 4 * len(counted)
    assert len(report.tables["best"].rows) == len(counted)
    assert "chosen on mazes of validation levels" in report.pages["steering"]
    assert set(report.films) == set(counted)
    assert f"../films/{counted[0]}.gif" in report.pages["steering"]
    assert not cut_off(report.figures["doses"])


def test_strengths_are_chosen_on_tuning_mazes_and_eigenfilters_come_with_a_bilinear_agent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", BilinearImpala(), {})
    study = Steering(
        str(tmp_path / "agent.safetensors"), taps=("pool3",), sources=("means",), operations=("add",),
        strengths=(8.0, 1.0), **SMALL,
    )  # fmt: skip
    report = study.run()
    rows = report.tables["doses"].rows
    assert {row[2] for row in rows} == {"means", "eigen"}
    for row in rows:
        own = [other for other in rows if other[:4] == row[:4]]
        assert [other[4] for other in own] == [1.0, 8.0]
        chosen = [other for other in own if other[-1] == "chosen"]
        assert len(chosen) == 1
        assert chosen[0][5] == max(other[5] for other in own)
    for row in report.tables["methods"].rows:
        assert [row[4]] == [other[4] for other in rows if other[:4] == row[:4] and other[-1] == "chosen"]


def test_a_bilinear_agent_without_eigenfilters_is_warned_of(agent: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "bilinear.safetensors", BilinearImpala(), {})
    bilinear = str(tmp_path / "bilinear.safetensors")
    with pytest.warns(UserWarning, match="reads conv2b or conv4a directly, .* one of pool1, conv2a, pool2, pool3, fc1"):
        Steering(bilinear, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Steering(bilinear, taps=("conv2b", "pool3"), **SMALL)
        Steering(agent, **SMALL)


def test_refuses_what_cannot_be_steered(agent: str) -> None:
    with pytest.raises(ValueError, match="CustomCNN ends in"):
        Steering(agent, taps=("logits",))
    with pytest.raises(ValueError, match="strengths"):
        Steering(agent, strengths=(0.0, 1.0))
    for name in ("taps", "sources", "operations"):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            Steering(agent, **{name: ()})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="operation 'turn'"):
        Steering(agent, operations=("turn",))


def test_matched_directions_are_as_long() -> None:
    one, other = torch.randn(4, 5), torch.randn(4, 5)
    torch.testing.assert_close(matched(one, other).norm(dim=1), other.norm(dim=1))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(matched(one, other), one), torch.ones(4))
