"""Batches of few sizes: each size is one more kernel to choose or compile."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

SMALLEST_BATCH = 8


def padded_batch(frames: UInt8[np.ndarray, "n 64 64 3"]) -> UInt8[Tensor, "size 64 64 3"]:
    """Frames, at least one, padded by copies of the last to a power of two, at least `SMALLEST_BATCH`."""
    size = max(SMALLEST_BATCH, 1 << (len(frames) - 1).bit_length())
    return torch.from_numpy(frames[np.minimum(np.arange(size), len(frames) - 1)])
