"""Colours of a game: how the three colours of its pixels vary together, fitted from real frames."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ColourStatistics:
    """Mean and covariance of pixels, each pixel a row of (red, green, blue) in 0 to 1.

    Attributes:
        mean: [3].
        covariance: [3 3].
    """

    mean: Float64[Tensor, " 3"]
    covariance: Float64[Tensor, "3 3"]

    @property
    def square_root(self) -> Float64[Tensor, "3 3"]:
        """U diag(sqrt(lambda)): maps independent unit variates (columns) to colours with this covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()

    def whiten(self, pixels: Float[Tensor, "... 3"]) -> Float64[Tensor, "... 3"]:
        """Pixels in 0 to 1 as uncorrelated variates of unit variance (zero along a direction that never varies)."""
        return (pixels.double() - self.mean) @ torch.linalg.pinv(self.square_root, rtol=1e-9).T


class ColourMoments:
    """Fits `ColourStatistics` over streamed frames in constant memory; sums of integers in float64 are exact."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Int64[Tensor, " 3"] = torch.zeros(3, dtype=torch.int64)
        self._products: Float64[Tensor, "3 3"] = torch.zeros(3, 3, dtype=torch.float64)

    def update(self, frames: UInt8[Tensor, "B H W 3"]) -> None:
        """Take in a batch of frames."""
        pixels = frames.reshape(-1, 3).cpu()
        self._count += len(pixels)
        self._sum += pixels.sum(0, dtype=torch.int64)
        for chunk in pixels.split(2**20):
            rows = chunk.double()
            self._products += rows.T @ rows

    def statistics(self) -> ColourStatistics:
        """What was fitted.

        Raises:
            ValueError: no frames, or all of one colour: nothing to decorrelate with.
        """
        if self._count == 0:
            raise ValueError("no frames were given: colours are fitted from real frames of the game")
        mean = self._sum.double() / self._count
        covariance = self._products / self._count - torch.outer(mean, mean)
        if covariance.trace() < 1e-6:
            raise ValueError("all frames given are of one colour: fit colours on frames of the game itself")
        return ColourStatistics(mean / 255, covariance / 255**2)
