"""One precision for everything that is compared: play, recording, splicing and training."""

import functools
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
_PROCESSOR = Path("/proc/cpuinfo")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is ARM's


def autocast(precision: Precision, device: torch.device | str = "cpu") -> AbstractContextManager[object]:
    """The context in which a network runs: bfloat16 autocast, or none, whatever is active around it.

    Eager and compiled bf16 differ by about .002 and bf16 kernels may differ with the batch size; two runs that are to
    be equal bit for bit use fp32.

    Raises:
        ValueError: another precision's name.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is unknown: choose 'fp32' or 'bf16'")
    kind = torch.device(device).type
    if precision == "bf16":
        warn_of_slow_bf16(kind, "precision fp32")
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16")


def has_bf16(device_type: str) -> bool:
    """Whether the processor, or the first GPU, computes in bfloat16 itself.

    One that does not imitates it, and is slower than in float32 (`benchmarks.precision`).
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        return device_type != "cpu" or not _BF16_FLAGS.isdisjoint(_PROCESSOR.read_text().split())
    except OSError:
        return False


@functools.cache
def warn_of_slow_bf16(device_type: str, instead: str) -> None:
    """Say once that a device only imitates bfloat16, and what to ask for instead."""
    if not has_bf16(device_type):
        warnings.warn(f"this {device_type} only imitates bfloat16, slowly: {instead} is faster here", stacklevel=3)


# What is taken unless a precision is given. A GPU is not asked for its age, which would claim it at import.
DEFAULT_PRECISION: Precision = "bf16" if torch.cuda.is_available() or has_bf16("cpu") else "fp32"
