"""Fixtures of several test files."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # or each process starts others that import torch again

from tests.small_configs import save_networks


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with random networks in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    save_networks()
    return tmp_path


@pytest.fixture(autouse=True, scope="session")
def few_frames_for_colours() -> Iterator[None]:
    """A game's colours are fitted anew in every empty directory: to 64 frames, where 2 048 take most of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interpretability.stored_colours._FRAMES", 64)
        yield
