"""Optimised images: what a channel or latent responds to most, found by gradient ascent on an image.

The image is a Fourier spectrum with decorrelated colours, seen by the network through small random shifts, turns and
scales (Olah, Mordvintsev and Schubert 2017, https://distill.pub/2017/feature-visualization, and its code, lucid).
Every requested unit is one image of a single batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from interpretability.colour import ColourStatistics
from interpretability.parametrisations import SIZE, FourierImages, Unlikeness
from networks import Edit, Precision, SAEBase, TappedAgent, autocast

_TRACE = 1e-6  # above zero, but too little to matter; a pool's root of squares must still feel it
_SILENT = 1e-4  # what traces may add up to


class Unit(NamedTuple):
    """What one image is to drive.

    Attributes:
        number: channel of the tap, or latent of the autoencoder.
        position: (y, x) on the tap's map; None for the mean over the map.
    """

    number: int
    position: tuple[int, int] | None = None


@dataclass(frozen=True)
class OptimisationSettings:
    """How images are made.

    Attributes:
        steps: of Adam.
        learning_rate: of Adam, on a spectrum whose entries start with variance 1.
        decay: an image's amplitude falls with frequency to this power; 1, as in lucid, leaves pixel noise at 64 pixels.
        jitter: largest shift, in pixels, each way.
        turn: largest turn in degrees, each way.
        scale: largest relative change of size, each way.
        smoothness: weight against differences between neighbouring pixels.
        palette: weight against colours more than 3 standard deviations from the game's mean colour.
        starts: random images, of which each unit begins with the one that drives it most.
        opening: share of the steps, from the first on, in which gradients find a way past ReLUs that block them.
        leak: share of its pre-activation that drives a unit at positions where it is silent; without it they stay so.
        seed: of the starting images and the shifts.
    """

    steps: int = 128
    learning_rate: float = 0.15
    decay: float = 1.75
    jitter: float = 2.5
    turn: float = 4.0
    scale: float = 0.04
    smoothness: float = 6.0
    palette: float = 0.1
    starts: int = 64
    opening: float = 0.5
    leak: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.starts) < 1 or self.learning_rate <= 0:
            raise ValueError("steps and starts must be at least 1, learning_rate above 0")
        weights = (
            self.decay,
            self.jitter,
            self.turn,
            self.scale,
            self.smoothness,
            self.palette,
            self.opening,
            self.leak,
        )
        if min(weights) < 0:
            raise ValueError("decay, jitter, turn, scale, smoothness, palette, opening and leak must not be negative")


class OptimisedImages(NamedTuple):
    """One image a unit.

    Attributes:
        images: as shown, 8 bits a colour.
        achieved: what was to be driven (position, or mean over the map) on the image as shown, without shifts.
        peak: the unit's highest activation at any position of that image: comparable with a dataset maximum.
        driven: False where the image drives the unit no more than noise does on average.
    """

    images: UInt8[Tensor, "U 64 64 3"]
    achieved: Float[Tensor, " U"]
    peak: Float[Tensor, " U"]
    driven: Bool[Tensor, " U"]


def optimise_images(
    agent: TappedAgent,
    tap: str,
    units: Sequence[Unit],
    colours: ColourStatistics,
    *,
    sae: SAEBase | None = None,
    settings: OptimisationSettings | None = None,
    precision: Precision = "bf16",
) -> OptimisedImages:
    """Find an image for every unit.

    The gradients of the network's parameters, and the global random state, are left alone. Call it in eval mode; it
    may be called under `inference_mode`.

    Args:
        agent: the network, on any device.
        tap: where the units are.
        units: one image each.
        colours: of the game, from `ColourMoments`.
        sae: an autoencoder on the tap, whose latents the units then are; channels of the tap without it.
        settings: how.
        precision: of the network's passes.

    Raises:
        ValueError: an unknown tap, a unit or position that it does not have, or no unit.
    """
    settings = settings or OptimisationSettings()
    with torch.inference_mode(False), torch.no_grad():
        device = next(agent.parameters()).device
        response = _Response(agent, tap, units, sae, precision)
        generator = torch.Generator().manual_seed(settings.seed)
        noise = FourierImages(settings.starts, colours, settings.decay, generator).to(device)
        before_UK, after_UK = response.to_all(noise.as_shown())
        image = noise.select(before_UK.argmax(1))
        _ascend(
            image, response, Unlikeness(colours, settings.smoothness, settings.palette).to(device), settings, generator
        )
        shown = image.as_shown()
        final = response.maps(shown)[1]
        achieved, peak = response.goal(final), final.amax((1, 2))
        pixels = (shown * 255).round().to(torch.uint8)
        return OptimisedImages(pixels.cpu(), achieved.cpu(), peak.cpu(), (achieved > after_UK.mean(1)).cpu())


def _ascend(
    image: FourierImages,
    response: "_Response",
    unlikeness: Unlikeness,
    settings: OptimisationSettings,
    generator: torch.Generator,
) -> None:
    """Optimise the images in place."""
    parameters = list(image.parameters())
    optimiser = torch.optim.Adam(parameters, settings.learning_rate)
    for step in range(settings.steps):
        with torch.enable_grad():
            images = image()
            opened = step < settings.opening * settings.steps
            before, after = response.maps(_shaken(images, settings, generator), opened)
            gains = response.goal(torch.where(after > _SILENT, after, settings.leak * before))
            loss = (gains.detach().clamp(min=0) * unlikeness(images) - gains).sum()
        # autograd.grad rather than backward(): no .grad of the network is written
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()


def _shaken(
    images: Float[Tensor, "U 64 64 3"], settings: OptimisationSettings, generator: torch.Generator
) -> Float[Tensor, "U 64 64 3"]:
    """Each image shifted, turned and scaled a little, at random; its mirror image shows beyond the edge."""
    shift, turn, scale = (torch.rand(len(images), n, generator=generator) * 2 - 1 for n in (2, 1, 1))
    angle = turn[:, 0] * math.radians(settings.turn)
    factor = 1 + scale[:, 0] * settings.scale
    cosine, sine = factor * angle.cos(), factor * angle.sin()
    offset = shift * settings.jitter * 2 / SIZE
    rows = torch.stack([cosine, -sine, offset[:, 0], sine, cosine, offset[:, 1]], 1)
    affine = rows.view(-1, 2, 3).to(images.device)
    grid = functional.affine_grid(affine, [len(images), 3, SIZE, SIZE], align_corners=False)
    planes = images.permute(0, 3, 1, 2)
    moved = functional.grid_sample(planes, grid, padding_mode="reflection", align_corners=False)
    return moved.permute(0, 2, 3, 1)


class OpenedReLU(nn.Module):
    """An edit before a ReLU that lets a gradient past it where the ReLU would block nearly all of an image's.

    The value is raised to a trace above zero, so that the ReLU behind it passes whatever gradient this edit lets by:
    that of active entries, and, in a sample where this is less than a tenth of what silent entries would be raised by,
    that as well. lucid's `redirected_relu_grad` does so where nothing at all passes, which leaves units stuck behind
    a few active entries that hardly matter to them. Redirecting always leads nowhere.
    """

    def forward(self, acts: Tensor) -> Tensor:
        result: Tensor = _OpenedReLU.apply(acts)
        return result


class _OpenedReLU(torch.autograd.Function):
    @staticmethod
    def forward(acts: Tensor) -> Tensor:
        return acts.clamp(min=_TRACE)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0] > 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (active,) = ctx.saved_tensors
        passing = gradient * active
        # the loss is minimised: a negative gradient asks for a higher activation
        raising = gradient.clamp(max=0).masked_fill(active, 0)
        norms = [part.flatten(1).norm(dim=1) for part in (passing, raising)]
        blocked = (norms[0] < 0.1 * norms[1]).view(-1, *[1] * (gradient.ndim - 1))
        return passing + blocked * raising


class _Response:
    """What each image does to its own unit."""

    def __init__(
        self,
        agent: TappedAgent,
        tap: str,
        units: Sequence[Unit],
        sae: SAEBase | None,
        precision: Precision,
    ) -> None:
        agent.check_taps([tap])
        if not units:
            raise ValueError("no unit was asked for: name at least one")
        self._agent = agent
        self._tap = tap
        self._sae = sae
        self._precision: Precision = precision
        self._device = next(agent.parameters()).device
        befores = [name for name in agent.taps if name.endswith(".pre")] if agent.rectifies else []
        # an autoencoder's activation function lies behind the tap, a channel's own ReLU just before it
        self._before = f"{tap}.pre" if f"{tap}.pre" in befores and sae is None else tap
        self._opening: list[Edit] = [(name, OpenedReLU()) for name in befores if name not in (tap, self._before)]
        with torch.no_grad():
            _, number, height, width = self._all_maps(torch.zeros(1, SIZE, SIZE, 3, device=self._device), ())[1].shape
        self._weights = torch.zeros(len(units), height, width, device=self._device)
        for unit, weights in zip(units, self._weights, strict=True):
            y, x = unit.position or (0, 0)
            if not (0 <= unit.number < number and 0 <= y < height and 0 <= x < width):
                raise ValueError(f"{unit} does not exist: {tap} has {number} units on maps of {height} x {width}")
            if unit.position is None:
                weights[:] = 1 / (height * width)
            else:
                weights[y, x] = 1
        self._indices = torch.tensor([unit.number for unit in units], device=self._device)

    def maps(
        self, frames: Float[Tensor, "U 64 64 3"], opened: bool = False
    ) -> tuple[Float[Tensor, "U H W"], Float[Tensor, "U H W"]]:
        """Maps of each image's own unit before and after its activation function."""
        before, after = self._all_maps(frames, self._opening if opened else ())
        rows = torch.arange(len(frames), device=self._device)
        return before[rows, self._indices], after[rows, self._indices]

    def goal(self, maps_UHW: Float[Tensor, "U H W"]) -> Float[Tensor, " U"]:
        """What is to be driven: the mean over the map, or one position."""
        return (maps_UHW * self._weights).sum((1, 2))

    def to_all(self, frames: Float[Tensor, "K 64 64 3"]) -> tuple[Float[Tensor, "U K"], Float[Tensor, "U K"]]:
        """What each of any frames does to every unit, before and after its activation function."""
        before, after = (
            torch.einsum("kuhw,uhw->uk", maps[:, self._indices], self._weights) for maps in self._all_maps(frames, ())
        )
        return before, after

    def _all_maps(self, frames: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        record = (self._before, self._tap)
        with autocast(self._precision, self._device):
            # forward() rather than __call__: a network compiled for training is not compiled again for this
            acts = self._agent.forward(frames, record=record, edits=edits, outputs=False).activations
            before, after = acts[self._before], acts[self._tap]
            if self._sae is not None:
                before, after = self._sae.pre_activations(after), self._sae.encode(after)
        return _as_maps(before), _as_maps(after)


def _as_maps(acts: Tensor) -> Float[Tensor, "B F H W"]:
    """Activations of any tap as float32 maps: flat taps as 1 x 1."""
    return acts.float().reshape(len(acts), -1, *(acts.shape[2:] or (1, 1)))
