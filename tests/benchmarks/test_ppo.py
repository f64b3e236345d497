"""The plain loop trains the same network, and the comparison prints what it has to."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import ppo
from benchmarks.plain_ppo import PlainCNN
from networks import CustomCNN


def test_the_plain_network_is_ours() -> None:
    torch.manual_seed(0)
    ours, plain = CustomCNN(), PlainCNN()
    layers = [ours.conv1a, ours.conv2a, ours.conv2b, ours.conv3a, ours.conv4a, ours.fc1, ours.fc2]
    theirs = [layer for layer in plain.body if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    for one, other in zip([*layers, ours.fc3, ours.value_fc], [*theirs, plain.policy, plain.value], strict=True):
        other.load_state_dict(one.state_dict())
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8))
    with torch.no_grad():
        expected = ours(frames)
        policy, value = plain(frames.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(policy.logits, expected.logits.log_softmax(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, expected.value, rtol=1e-4, atol=1e-5)
    assert value.std() > 1e-3


def test_the_comparison_prints_its_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lightning_modules.ppo_impala.compile_in_place", lambda *modules, **options: False)
    monkeypatch.setattr(ppo, "peak_flops", lambda *arguments: 1e12)
    monkeypatch.setattr(sys, "argv", ["ppo", "--device", "cpu", "--num_environments", "4", "--num_steps", "8"])
    ppo.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"name", "ours", "baseline", "ratio", "unit", "floor", "time_share", "sizes", "machine"} <= figures.keys()
    ours, baseline, ratio = figures["ours"], figures["baseline"], figures["ratio"]  # rounded to .1, .1, .01
    assert (ours - 0.05) / (baseline + 0.05) - 0.005 <= ratio <= (ours + 0.05) / (baseline - 0.05) + 0.005
    assert sum(figures["time_share"].values()) == pytest.approx(1, abs=0.01)
    assert figures["sizes"]["num_steps"] == 8
