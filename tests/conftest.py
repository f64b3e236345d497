"""Fixtures of several test files."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # or each process starts others that import torch again

from tests.small_configs import save_networks


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with random networks in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr("interpretability.stored_colours._FRAMES", 64)  # fitted anew in every empty directory
    save_networks()
    return tmp_path
