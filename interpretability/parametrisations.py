"""What optimised images are made of: spectra and colours of the game, and how unlike the game an image is."""

import copy
from abc import ABC, abstractmethod
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from interpretability.colour import ColourStatistics

SIZE = 64


Parametrisation = Literal["fourier", "pixel", "phase"]


class GameImages(nn.Module, ABC):
    """Images that start as noise and whose colours vary together as the game's do.

    They start with the game's mean, contrast and colours: a uniform grey would silence most of an agent's ReLUs, and
    what is silent stays grey. Pixels are cut off at black and white rather than squashed by lucid's sigmoid, for at
    this contrast much noise would start where a sigmoid is flat, and stay there.

    Args:
        count: U.
        colours: of the game.
        decay: power of the frequency by which the amplitude falls, where the parametrisation leaves it open.
        generator: of the starting noise, on the CPU.

    Attributes:
        entries: what is optimised [U ...].
    """

    colour_root: Tensor
    mean: Tensor
    entries: nn.Parameter

    def __init__(self, count: int, colours: ColourStatistics, decay: float, generator: torch.Generator) -> None:
        super().__init__()
        # lucid divides the root by its largest column norm; undivided, unit planes have the game's own contrast
        self.register_buffer("colour_root", colours.square_root.float())
        self.register_buffer("mean", colours.mean.float())

    @abstractmethod
    def planes(self) -> Float[Tensor, "U 3 64 64"]:
        """Three independent planes of unit variance, which the game's colours are mixed from."""

    def forward(self) -> Float[Tensor, "U 64 64 3"]:
        """Images in 0 to 1."""
        images: Tensor = _CutOff.apply(self.planes().permute(0, 2, 3, 1) @ self.colour_root.T + self.mean)
        return images

    def as_shown(self) -> Float[Tensor, "U 64 64 3"]:
        """Images rounded to 8 bits a colour, without gradient."""
        with torch.no_grad():
            return (self() * 255).round() / 255

    def select(self, rows: Int64[Tensor, " U"]) -> "GameImages":
        """The images of the given rows, each with entries of its own."""
        chosen = copy.deepcopy(self)
        chosen.entries = nn.Parameter(self.entries.detach()[rows].clone())
        return chosen

    def resumed(self, entries: Float[Tensor, "U ..."], count: int) -> "GameImages":
        """Images of this kind with the entries of others.

        Raises:
            ValueError: entries of another parametrisation, or of another number of images than `count`.
        """
        expected = (count, *self.entries.shape[1:])
        if entries.shape != expected:
            raise ValueError(f"entries to go on from are {tuple(entries.shape)}: these images need {expected}")
        chosen = copy.deepcopy(self)
        chosen.entries = nn.Parameter(entries.detach().clone().to(self.entries))
        return chosen


class FourierImages(GameImages):
    """Images as spectra whose amplitude falls with frequency."""

    amplitude: Tensor

    def __init__(self, count: int, colours: ColourStatistics, decay: float, generator: torch.Generator) -> None:
        super().__init__(count, colours, decay, generator)
        self.register_buffer("amplitude", _falling(decay))
        self.entries = nn.Parameter(torch.randn(count, 3, SIZE, SIZE // 2 + 1, 2, generator=generator))

    def planes(self) -> Float[Tensor, "U 3 64 64"]:
        """Of the spectra."""
        spectrum = torch.view_as_complex(self.entries) * self.amplitude
        return torch.fft.irfft2(spectrum, s=(SIZE, SIZE), norm="ortho")


class PixelImages(GameImages):
    """Images as colours of pixels, which begin as `FourierImages` do."""

    def __init__(self, count: int, colours: ColourStatistics, decay: float, generator: torch.Generator) -> None:
        super().__init__(count, colours, decay, generator)
        with torch.no_grad():
            self.entries = nn.Parameter(FourierImages(count, colours, decay, generator).planes())

    def planes(self) -> Float[Tensor, "U 3 64 64"]:
        """The entries themselves."""
        return self.entries


class PhaseImages(GameImages):
    """Images as phases of spectra whose magnitudes are the game's own (MACO, Fel et al. 2023, arXiv 2306.06805).

    However long the ascent, an image has as much of every frequency as the game's frames have on average: no noise,
    and no other contrast. The magnitude is the root of the mean power over frames of decorrelated colours; `decay` is
    not used.

    Raises:
        ValueError: the statistics know no magnitudes.
    """

    magnitude: Tensor

    def __init__(self, count: int, colours: ColourStatistics, decay: float, generator: torch.Generator) -> None:
        super().__init__(count, colours, decay, generator)
        if colours.magnitude is None:
            raise ValueError("phase images need the magnitudes of real frames: take colours from game_colours")
        self.register_buffer("magnitude", colours.magnitude.float())
        shape = (count, 3, SIZE, SIZE // 2 + 1)
        self.entries = nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) * torch.pi)

    def planes(self) -> Float[Tensor, "U 3 64 64"]:
        """Of the spectra."""
        # the columns 0 and 32 of a real image's spectrum are mirrored in themselves, of which irfft2 takes the real
        # part: half the power of random phases is lost there, as it is for the amplitudes of `FourierImages`
        spectrum = torch.polar(self.magnitude.expand_as(self.entries), self.entries)
        return torch.fft.irfft2(spectrum, s=(SIZE, SIZE), norm="ortho")


PARAMETRISATIONS: Final[dict[Parametrisation, type[GameImages]]] = {
    "fourier": FourierImages,
    "pixel": PixelImages,
    "phase": PhaseImages,
}


def _falling(decay: float) -> Float[Tensor, "64 33"]:
    """Amplitudes with which independent entries of variance 2 (real and imaginary part) make planes of variance 1."""
    frequencies = torch.fft.fftfreq(SIZE)
    amplitude = torch.hypot(frequencies[:, None], frequencies[None]).clamp(min=1 / SIZE) ** -decay
    # an orthonormal transform keeps the mean square
    amplitude /= (2 * amplitude.square().mean()).sqrt()
    return amplitude[:, : SIZE // 2 + 1]


class _CutOff(torch.autograd.Function):
    """Values cut off at 0 and 1; a gradient that leads back inside passes."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clamp(0, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        # the loss is minimised: a negative gradient asks for a higher value
        outwards = ((values > 1) & (gradient < 0)) | ((values < 0) & (gradient > 0))
        return gradient.masked_fill(outwards, 0)


class Unlikeness(nn.Module):
    """How unlike the game images are: total variation, and colours far outside the game's own.

    Args:
        colours: of the game.
        smoothness: weight of the mean difference between neighbouring pixels.
        palette: weight of colours' squared distance from the game's mean, in standard deviations, beyond 3.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, colours: ColourStatistics, smoothness: float, palette: float) -> None:
        super().__init__()
        self._smoothness, self._palette = smoothness, palette
        self.register_buffer("mean", colours.mean.float())
        # a little variance in every direction: a colour that a game hardly uses would rule out the faintest tint
        blurred = ColourStatistics(colours.mean, colours.covariance + 0.02**2 * torch.eye(3, dtype=torch.float64))
        self.register_buffer("whitening", torch.linalg.inv(blurred.square_root).float())

    def forward(self, images: Float[Tensor, "U 64 64 3"]) -> Float[Tensor, " U"]:
        """One number an image, 0 for a uniform one in the game's mean colour."""
        rows, columns = images.diff(dim=1).abs(), images.diff(dim=2).abs()
        variation = rows.mean((1, 2, 3)) + columns.mean((1, 2, 3))
        whitened = (images - self.mean) @ self.whitening.T
        excess = (whitened.square().sum(-1) - 9).clamp(min=0).mean((1, 2))
        return self._smoothness * variation + self._palette * excess
