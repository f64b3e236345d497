"""One precision for everything that is compared: play, recording, splicing and training."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def autocast(precision: Precision, device: torch.device | str = "cpu") -> AbstractContextManager[object]:
    """The context in which a network runs: bfloat16 autocast, or none, whatever is active around it.

    Eager and compiled bf16 differ by about .002 and bf16 kernels may differ with the batch size; two runs that are to
    be equal bit for bit use fp32.

    Raises:
        ValueError: another precision's name.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is unknown: choose 'fp32' or 'bf16'")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
