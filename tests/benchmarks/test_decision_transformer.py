"""The two contestants are of one size and do one thing."""

import torch

from benchmarks.decision_transformer import SIZES, our_training, plain_training, playing, training, windows
from benchmarks.plain_decision_transformer import PlainDecisionTransformer
from datamodules import TrajectoryBatch
from networks import DecisionTransformer

CPU = torch.device("cpu")


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_both_have_the_same_blocks_and_encoder():
    ours, plain = DecisionTransformer(**SIZES), PlainDecisionTransformer(**SIZES, encode=True)
    assert count(ours.blocks) == count(plain.blocks)
    used = sum(parameter.numel() for parameter in ours.encoder.parameters() if parameter.requires_grad)
    assert used == count(plain.encoder)


def test_both_learn_the_same_windows(monkeypatch):
    """A few steps on one batch lower both losses; the plain one is causal, too."""
    monkeypatch.setattr("benchmarks.decision_transformer.compile_in_place", lambda network: None)
    torch.manual_seed(0)
    window = windows(2, 6, CPU)
    sizes = SIZES | {"context": 6}
    ours, plain = DecisionTransformer(**sizes), PlainDecisionTransformer(**sizes, encode=True)
    before = ours(window).logits.log_softmax(-1).gather(-1, window.actions[..., None]).mean()
    step = our_training(ours, TrajectoryBatch(window, {}, None), CPU)
    for _ in range(10):
        step()
    after = ours(window).logits.log_softmax(-1).gather(-1, window.actions[..., None]).mean()
    assert after > before + 0.1
    step = plain_training(plain, window, window.frames)
    losses = [step() for _ in range(10)]
    assert losses[-1] < losses[0] - 0.1
    with torch.no_grad():
        seen = window.frames.permute(0, 1, 4, 2, 3).float() / 255
        rest = (window.returns_to_go, window.timesteps)
        changed = window.actions.clone()
        changed[:, 3] = (changed[:, 3] + 1) % 15
        first, second = plain(seen, window.actions, *rest), plain(seen, changed, *rest)
    assert torch.equal(first[:, :4], second[:, :4])
    assert not torch.equal(first[:, 4:], second[:, 4:])


def test_every_comparison_runs(monkeypatch):
    monkeypatch.setattr("benchmarks.decision_transformer.compile_in_place", lambda network: None)
    monkeypatch.setattr("benchmarks.decision_transformer.SIZES", SIZES | {"context": 4})
    found = [training(1, False, 1, CPU), training(1, True, 1, CPU), playing(2, False, 1, CPU), playing(2, True, 1, CPU)]
    assert all(rates["ours"] > 0 and rates["baseline"] > 0 for rates in found)
