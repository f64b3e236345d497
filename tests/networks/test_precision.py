"""What is computed in, and what is said where bfloat16 is imitated."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from networks import autocast, precision


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> Iterator[None]:
    precision.warn_of_slow_bf16.cache_clear()
    yield
    precision.warn_of_slow_bf16.cache_clear()


def _processor(flags: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cpuinfo").write_text(f"model name\t: Imitator-bf16\nflags\t\t: fpu {flags}\n")
    monkeypatch.setattr(precision, "_PROCESSOR", folder / "cpuinfo")


def test_precision_names() -> None:
    with autocast("bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast("bf16"), autocast("fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(ValueError, match="fp64"):
        autocast("fp64")  # type: ignore[arg-type]


@pytest.mark.parametrize("flags", ["avx2 avx512f avx512_bf16", "avx512f amx_bf16 amx_tile"])
def test_a_processor_with_bf16_is_known(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _processor(flags, tmp_path, monkeypatch)
    assert precision.has_bf16("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autocast("bf16")


def test_imitated_bf16_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _processor("avx2 avx512f avx512_vnni", tmp_path, monkeypatch)
    assert not precision.has_bf16("cpu")
    with pytest.warns(UserWarning, match="imitates bfloat16.*fp32 is faster"):
        autocast("bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autocast("bf16")
        autocast("fp32")


def test_no_list_of_abilities_is_no_ability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_PROCESSOR", tmp_path / "absent")
    assert not precision.has_bf16("cpu")
