"""One precision for everything that is compared: play, recording, splicing and training."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def autocast(precision: Precision, device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """The context in which a network runs: bfloat16 autocast, or nothing.

    Eager and compiled bf16 differ by about .002 and bf16 kernels may differ with the batch size; two runs that are to
    be equal bit for bit use fp32.

    Raises:
        ValueError: another precision's name.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r} is unknown: choose 'fp32' or 'bf16'")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
