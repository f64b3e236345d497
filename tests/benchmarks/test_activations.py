import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import activations
from networks import CustomCNN, save_weights


def test_it_prints_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But for the memory of a process of its own, which would take its start's seconds."""
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    monkeypatch.setattr(activations, "measure_memory", lambda *arguments: 0.5)
    sizes = {"agent": tmp_path / "agent.safetensors", "positions": 8_192, "batch_size": 512, "steps": 2, "repeats": 2}
    given = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["activations", "--device", "cpu", *given])
    activations.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"name", "ours", "baseline", "ratio", "unit", "floor", "machine"} <= figures.keys()
    assert {"ours", "environment", "forward", "floor", "ratio", "unit"} == figures["stream"].keys()
    alone = 1 / figures["stream"]["environment"] + 1 / figures["stream"]["forward"]
    assert figures["stream"]["floor"] == pytest.approx(1 / alone, abs=0.0501)  # it is rounded to a tenth
    assert figures["memory"] == {"positions": 8_192, "peak": 0.5, "limit": 2.0, "unit": "GB"}
    assert figures["ours"] > 0
    assert figures["sizes"]["frames_per_block"] == 128
