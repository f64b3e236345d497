import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings
from interpretability.ablations import MeanAblation, TapMean, ZeroAblation
from interpretability.episodes import play_episodes
from interpretability.splice import evaluate_splice, evaluate_splices
from networks.custom_cnn import CustomCNN

EASY = EnvironmentSettings()
LEVELS = range(10, 16)
PLAY = {"settings": EASY, "num_environments": 4, "max_steps": 16, "seed": 3, "precision": "fp32"}


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    agent.fc3.weight.data *= 20
    return agent


class Halve(nn.Module):
    def forward(self, acts):
        return acts / 2


def naive_comparison(agent, edits, every):
    """Per level: frames, agreements, KL and value errors of each edit, from frames kept in a list; and the mean of
    conv4a over all of them.
    """
    kept, seen = {}, []

    def keep(step):
        for level, count, frame in zip(step.levels, step.steps, step.frames, strict=True):
            seen.append(frame.copy())
            if count % every == 0:
                kept.setdefault(int(level), []).append(frame.copy())

    play_episodes(agent, LEVELS, observer=keep, **PLAY)
    with torch.no_grad():
        every_frame = agent(torch.from_numpy(np.stack(seen)), record=("conv4a",)).activations["conv4a"]
    mean = MeanAblation(every_frame.mean(0))
    rows = {}
    for arm, edit in (edits | {"mean_ablated": mean}).items():
        rows[arm] = []
        for level in LEVELS:
            frames = torch.from_numpy(np.stack(kept[level]))
            with torch.no_grad():
                before, after = agent(frames), agent(frames, edits=[("conv4a", edit)])
            clean, other = before.logits.softmax(-1), after.logits.softmax(-1)
            agree = sum(int(a.argmax() == b.argmax()) for a, b in zip(clean, other, strict=True))
            kl = sum(float((a * (a / b).log()).sum()) for a, b in zip(clean, other, strict=True))
            value = sum(abs(float(a - b)) for a, b in zip(before.value, after.value, strict=True))
            rows[arm].append((len(frames), agree, kl, value))
    return {arm: np.array(of_arm) for arm, of_arm in rows.items()}, mean


def test_arms_and_comparisons_agree_with_naive_code(agent):
    result = evaluate_splice(agent, "conv4a", Halve(), LEVELS, compare_every=3, **PLAY)
    naive, mean = naive_comparison(agent, {"spliced": Halve(), "zero_ablated": ZeroAblation()}, 3)
    assert set(result.comparisons) == set(naive)
    for arm, rows in naive.items():
        comparison = result.comparisons[arm]
        assert comparison.frames.tolist() == rows[:, 0].tolist()
        assert comparison.agreed.tolist() == rows[:, 1].tolist()
        assert comparison.kl == pytest.approx(rows[:, 2], rel=2e-3)
        assert comparison.value_errors == pytest.approx(rows[:, 3], rel=2e-3, abs=1e-5)
        assert comparison.value_errors.min() > 0
    arms = {
        "clean": [],
        "spliced": [("conv4a", Halve())],
        "mean_ablated": [("conv4a", mean)],
        "zero_ablated": [("conv4a", ZeroAblation())],
    }
    for arm, edits in arms.items():
        expected = play_episodes(agent, LEVELS, edits=edits, **PLAY)
        assert getattr(result, arm).returns.tolist() == expected.returns.tolist(), arm
        assert getattr(result, arm).lengths.tolist() == expected.lengths.tolist(), arm
    metrics = result.metrics()
    sums = {arm: rows.sum(0) for arm, rows in naive.items()}
    for arm, prefix in (("spliced", ""), ("mean_ablated", "mean_ablation_"), ("zero_ablated", "zero_ablation_")):
        frames, agreed, kl, value = sums[arm]
        assert metrics[f"splice/{prefix}action_agreement"] == pytest.approx(agreed / frames)
        assert metrics[f"splice/{prefix}kl"] == pytest.approx(kl / frames, rel=1e-3)
        assert metrics[f"splice/{prefix}value_error"] == pytest.approx(value / frames, rel=1e-3)
    expected = 1 - sums["spliced"][2] / sums["mean_ablated"][2]
    assert metrics["splice/kl_recovered"] == pytest.approx(expected, rel=1e-2)
    assert metrics["splice/kl_low"] <= metrics["splice/kl"] <= metrics["splice/kl_high"]
    assert metrics["splice/return"] == pytest.approx(result.spliced.returns.mean())
    assert metrics["splice/levels"] == len(LEVELS)


def test_metrics_of_known_episodes(agent):
    result = evaluate_splice(agent, "conv4a", nn.Identity(), range(4), settings=EASY, max_steps=2)
    result.clean.returns[:] = [10, 10, 10, 0]
    result.spliced.returns[:] = [10, 10, 0, 0]
    result.mean_ablated.returns[:] = [0, 0, 10, 0]
    result.clean.solved[:] = [True, True, True, False]
    result.spliced.solved[:] = [True, True, False, False]
    metrics = result.metrics()
    assert metrics["splice/clean_return"] == 7.5
    assert metrics["splice/return_ratio"] == pytest.approx(5 / 7.5)
    assert (metrics["splice/clean_solved"], metrics["splice/solved"]) == (0.75, 0.5)
    assert metrics["splice/mean_ablation_solved"] == metrics["splice/zero_ablation_solved"] == 0
    assert 0 < metrics["splice/solved_low"] < 0.5 < metrics["splice/solved_high"] < 1
    assert metrics["splice/zero_ablation_solved_high"] > 0.3  # none of four says little
    assert metrics["splice/recovered"] == pytest.approx((5 - 2.5) / (7.5 - 2.5))
    assert metrics["splice/action_agreement"] == 1
    assert metrics["splice/kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["splice/value_error"] < 1e-2
    assert metrics["splice/mean_ablation_kl"] > metrics["splice/kl"]


def test_ablated_arms_may_play_the_first_levels_only(agent):
    whole = evaluate_splice(agent, "conv4a", Halve(), LEVELS, **PLAY)
    part = evaluate_splice(agent, "conv4a", Halve(), LEVELS, ablated_levels=4, **PLAY)
    for arm in ("clean", "spliced"):
        assert getattr(part, arm).lengths.tolist() == getattr(whole, arm).lengths.tolist()
    for arm in ("mean_ablated", "zero_ablated"):
        assert getattr(part, arm).lengths.tolist() == getattr(whole, arm).lengths[:4].tolist()
    part.clean.returns[:] = [10, 10, 0, 0, 10, 10]
    part.spliced.returns[:] = [10, 0, 0, 0, 10, 10]
    part.mean_ablated.returns[:] = 0
    metrics = part.metrics()
    assert metrics["splice/return_ratio"] == pytest.approx(3 / 4)
    assert metrics["splice/recovered"] == pytest.approx(1 / 2)
    assert (metrics["splice/levels"], metrics["splice/ablated_levels"]) == (6, 4)
    assert metrics["splice/kl_recovered"] == pytest.approx(whole.metrics()["splice/kl_recovered"])


def test_an_interrupted_evaluation_goes_on_from_the_arms_it_finished(agent, tmp_path, monkeypatch):
    def results(**more):
        saes = {"half": ("conv4a", Halve()), "whole": ("fc1", nn.Identity())}
        return evaluate_splices(agent, saes, LEVELS[:4], **PLAY | {"max_steps": 6} | more)

    def play_until(*given, **settings):
        if len(played) == allowed[-1]:
            raise KeyboardInterrupt
        played.append(given)
        return play_episodes(*given, **settings)

    expected = results()
    monkeypatch.setattr("interpretability.splice.play_episodes", play_until)
    found, played, allowed = {}, [], []
    for arms in (3, 3, 8):  # clean, half and whole; nothing more; the four ablated ones
        allowed.append(arms)
        with contextlib.suppress(KeyboardInterrupt):
            found = results(keep_dir=tmp_path)
    assert len(played) == 7
    for name, result in expected.items():
        assert found[name].metrics() == pytest.approx(result.metrics(), nan_ok=True)
        assert found[name].clean.lengths.tolist() == [6] * 4
    assert not list(tmp_path.iterdir()), "nothing is kept of what is finished"


def test_identity_splice_changes_nothing(agent):
    result = evaluate_splice(agent, "conv4a", nn.Identity(), LEVELS, **PLAY | {"precision": "bf16"})
    assert result.clean.lengths.tolist() == result.spliced.lengths.tolist()
    assert result.clean.returns.tolist() == result.spliced.returns.tolist()


def test_an_autoencoder_stays_in_its_mode_and_is_run_in_eval_mode(agent):
    modes = []

    class Spy(nn.Module):
        def forward(self, acts):
            modes.append(self.training)
            return acts

    sae = Spy().train()
    evaluate_splice(agent, "fc1", sae, [1, 2], settings=EASY, max_steps=5)
    assert modes
    assert not any(modes)
    assert sae.training


def test_refusals(agent):
    with pytest.raises(ValueError, match="no tap 'conv5'"):
        evaluate_splice(agent, "conv5", nn.Identity(), [1], settings=EASY)
    with pytest.raises(ValueError, match="run the agent"):
        TapMean().ablation()
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"ablated_levels is {number}: choose 1 to num_levels, 2"):
            evaluate_splice(agent, "fc1", nn.Identity(), [1, 2], ablated_levels=number, settings=EASY)
