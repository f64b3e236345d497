"""The point whose summed distance to given points is least: a mean that outliers hardly move."""

import torch
from jaxtyping import Float
from torch import Tensor


def geometric_median(rows: Float[Tensor, "N C"], iterations: int = 20) -> Float[Tensor, " C"]:
    """Weiszfeld's iteration from the mean: each point weighs the reciprocal of its distance to the last estimate.

    Nothing waits for the device; distances below a millionth of the rows' spread count as that, so that an estimate
    that falls onto a point is no division by 0.
    """
    median = rows.mean(0)
    least = (1e-6 * (rows - median).norm(dim=1).mean()).clamp_min(1e-12)  # rows may all be the same
    for _ in range(iterations):
        weights = 1 / torch.maximum((rows - median).norm(dim=1, keepdim=True), least)
        median = (rows * weights).sum(0) / weights.sum()
    return median
