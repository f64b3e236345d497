import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings
from interpretability.episodes import play_episodes
from interpretability.splice import MeanAblation, TapMean, ZeroAblation, evaluate_splice
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


def naive_comparison(agent, edit, every):
    """Per level: frames, agreements and KL; and the mean of conv4a, all from frames kept in a list."""
    kept = {}

    def keep(step):
        for level, count, frame in zip(step.levels, step.steps, step.frames, strict=True):
            if count % every == 0:
                kept.setdefault(int(level), []).append(frame.copy())

    play_episodes(agent, LEVELS, observer=keep, **PLAY)
    rows, acts = [], []
    for level in LEVELS:
        frames = torch.from_numpy(np.stack(kept[level]))
        with torch.no_grad():
            output = agent(frames, record=("conv4a",))
            clean = output.logits.softmax(-1)
            other = agent(frames, edits=[("conv4a", edit)]).logits.softmax(-1)
        acts.append(output.activations["conv4a"])
        agree = sum(int(a.argmax() == b.argmax()) for a, b in zip(clean, other, strict=True))
        kl = sum(float((a * (a / b).log()).sum()) for a, b in zip(clean, other, strict=True))
        rows.append((len(frames), agree, kl))
    return np.array(rows), torch.cat(acts).mean(0)


def test_arms_and_comparison_agree_with_naive_code(agent):
    result = evaluate_splice(agent, "conv4a", Halve(), LEVELS, compare_every=3, **PLAY)
    rows, mean = naive_comparison(agent, Halve(), 3)
    assert result.comparison.frames.tolist() == rows[:, 0].tolist()
    assert result.comparison.agreed.tolist() == rows[:, 1].tolist()
    assert result.comparison.kl == pytest.approx(rows[:, 2], rel=1e-3)
    arms = {
        "clean": [],
        "spliced": [("conv4a", Halve())],
        "mean_ablated": [("conv4a", MeanAblation(mean))],
        "zero_ablated": [("conv4a", ZeroAblation())],
    }
    for arm, edits in arms.items():
        expected = play_episodes(agent, LEVELS, edits=edits, **PLAY)
        assert getattr(result, arm).returns.tolist() == expected.returns.tolist(), arm
        assert getattr(result, arm).lengths.tolist() == expected.lengths.tolist(), arm
    metrics = result.metrics()
    frames, agreed, kl = rows.sum(0)
    assert metrics["splice/action_agreement"] == pytest.approx(agreed / frames)
    assert metrics["splice/kl"] == pytest.approx(kl / frames, rel=1e-3)
    assert metrics["splice/kl_low"] <= metrics["splice/kl"] <= metrics["splice/kl_high"]
    assert metrics["splice/return"] == pytest.approx(result.spliced.returns.mean())
    assert metrics["splice/levels"] == len(LEVELS)


def test_metrics_of_known_episodes(agent):
    result = evaluate_splice(agent, "conv4a", nn.Identity(), range(4), settings=EASY, max_steps=2)
    result.clean.returns[:] = [10, 10, 10, 0]
    result.spliced.returns[:] = [10, 10, 0, 0]
    result.mean_ablated.returns[:] = [0, 0, 10, 0]
    metrics = result.metrics()
    assert metrics["splice/clean_return"] == 7.5
    assert metrics["splice/return_ratio"] == pytest.approx(5 / 7.5)
    assert metrics["splice/recovered"] == pytest.approx((5 - 2.5) / (7.5 - 2.5))
    assert metrics["splice/action_agreement"] == 1
    assert metrics["splice/kl"] == pytest.approx(0, abs=1e-6)


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
