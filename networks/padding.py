"""Batches of few sizes: each size is one more kernel to choose or compile."""

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

SMALLEST_BATCH = 8


def padded_batch(frames: Shaped[np.ndarray, "n *rest"]) -> Shaped[Tensor, "size *rest"]:
    """Frames, at least one, or what goes with each, padded by copies of the last to a power of two.

    That is at least `SMALLEST_BATCH`.
    """
    size = max(SMALLEST_BATCH, 1 << (len(frames) - 1).bit_length())
    return torch.from_numpy(frames[np.minimum(np.arange(size), len(frames) - 1)])
