"""Colours of a game: how the three colours of its pixels vary together, fitted from real frames."""

from dataclasses import dataclass

import torch
from jaxtyping import Complex128, Float, Float64, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ColourStatistics:
    """Mean and covariance of pixels, each pixel a row of (red, green, blue) in 0 to 1.

    Attributes:
        mean: [3].
        covariance: [3 3].
        magnitude: of the spectra of whitened frames, in the order of `torch.fft.rfft2` with orthonormal scaling: the
            root of their mean power. None where it was not fitted.
    """

    mean: Float64[Tensor, " 3"]
    covariance: Float64[Tensor, "3 3"]
    magnitude: Float64[Tensor, "3 H F"] | None = None

    @property
    def square_root(self) -> Float64[Tensor, "3 3"]:
        """U diag(sqrt(lambda)): maps independent unit variates (columns) to colours with this covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp(min=0).sqrt()

    @property
    def whitening(self) -> Float64[Tensor, "3 3"]:
        """Maps colours less their mean (columns) to independent unit variates; 0 of what never varies."""
        return torch.linalg.pinv(self.square_root, rtol=1e-9)

    def whiten(self, pixels: Float[Tensor, "... 3"]) -> Float64[Tensor, "... 3"]:
        """Pixels in 0 to 1 as uncorrelated variates of unit variance (zero along a direction that never varies)."""
        return (pixels.double() - self.mean) @ self.whitening.T


class ColourMoments:
    """Fits `ColourStatistics` over streamed frames in constant memory; sums of integers in float64 are exact.

    Args:
        magnitudes: fit the magnitudes of spectra too.
    """

    def __init__(self, magnitudes: bool = False) -> None:
        self._magnitudes = magnitudes
        self._frames = self._count = 0
        self._sum: Int64[Tensor, " 3"] = torch.zeros(3, dtype=torch.int64)
        self._products: Float64[Tensor, "3 3"] = torch.zeros(3, 3, dtype=torch.float64)
        self._power: Complex128[Tensor, "H F 3 3"] | Float[Tensor, ""] = torch.zeros(())

    def update(self, frames: UInt8[Tensor, "B H W 3"]) -> None:
        """Take in a batch of frames."""
        pixels = frames.reshape(-1, 3).cpu()
        self._count += len(pixels)
        self._frames += len(frames)
        if self._magnitudes:
            for some in frames.cpu().split(256):
                # the power of colours mixed otherwise follows from that of all pairs of colours
                spectra = torch.fft.rfft2(some.permute(0, 3, 1, 2).double(), norm="ortho")
                self._power = self._power + torch.einsum("bchw,bdhw->hwcd", spectra, spectra.conj())
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
        found = ColourStatistics(mean / 255, covariance / 255**2)
        if not self._magnitudes:
            return found
        power = self._power / self._frames
        power[0, 0] -= self._count / self._frames * torch.outer(mean, mean)  # spectra of colours less their mean
        whitening = found.whitening / 255
        whitened = torch.einsum("ic,hwcd,id->ihw", whitening + 0j, power, whitening + 0j).real
        return ColourStatistics(found.mean, found.covariance, whitened.clamp(min=0).sqrt())
