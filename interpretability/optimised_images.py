"""Optimised images: what a channel or latent responds to most, found by gradient ascent on an image.

The image is a Fourier spectrum with decorrelated colours, seen by the network through small random shifts, turns and
scales (Olah, Mordvintsev and Schubert 2017, https://distill.pub/2017/feature-visualization, and its code, lucid);
`parametrisations` has others. Every objective is one image of a single batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from interpretability.colour import ColourStatistics
from interpretability.image_objectives import Objective, Response, likeness
from interpretability.parametrisations import PARAMETRISATIONS, SIZE, GameImages, Parametrisation, Unlikeness
from networks import DEFAULT_PRECISION, Precision, SAEBase, TappedAgent


@dataclass(frozen=True)
class OptimisationSettings:
    """How images are made.

    Attributes:
        steps: of Adam.
        learning_rate: of Adam, on entries that start with variance 1 (phases: in radians).
        parametrisation: what is optimised: `fourier` spectra, `pixel` colours, or the `phase` of spectra whose
            magnitudes are those of the game's own frames.
        decay: an image's amplitude falls with frequency to this power; 1, as in lucid, leaves pixel noise at 64 pixels.
        jitter: largest shift, in pixels, each way.
        turn: largest turn in degrees, each way.
        scale: largest relative change of size, each way.
        smoothness: weight against differences between neighbouring pixels.
        palette: weight against colours more than 3 standard deviations from the game's mean colour.
        starts: random images, of which each unit begins with the one that drives it most.
        opening: share of the steps, from the first on, in which gradients find a way past ReLUs that block them.
        leak: share of its pre-activation that drives a unit where it is silent, most of all at positions where it
            nearly fires; without it they stay silent.
        diversity: weight against images of one and the same objective that look alike to the tap; those of them that
            are asked for more than once then show different things that drive it.
        seed: of the starting images and the shifts.
    """

    steps: int = 128
    learning_rate: float = 0.15
    parametrisation: Parametrisation = "fourier"
    decay: float = 1.75
    jitter: float = 2.5
    turn: float = 4.0
    scale: float = 0.04
    smoothness: float = 6.0
    palette: float = 0.1
    starts: int = 64
    opening: float = 0.5
    leak: float = 0.1
    diversity: float = 0.0
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
            self.diversity,
        )
        if min(weights) < 0:
            raise ValueError(
                "decay, jitter, turn, scale, smoothness, palette, opening, leak and diversity must not be negative"
            )
        if self.parametrisation not in PARAMETRISATIONS:
            raise ValueError(f"parametrisation {self.parametrisation!r}: choose one of {', '.join(PARAMETRISATIONS)}")


class Inside(NamedTuple):
    """A real frame, of which only a part is optimised: a patch of the environment.

    Attributes:
        frame: what the rest shows.
        mask: share of the optimised image at each pixel, 0 to 1.
    """

    frame: UInt8[Tensor, "64 64 3"]
    mask: Float[Tensor, "64 64"]


class OptimisedImages(NamedTuple):
    """One image an objective.

    Attributes:
        images: as shown, 8 bits a colour.
        achieved: what was to be driven (position, or mean over the map) on the image as shown, without shifts.
        peak: the highest value at any position of that image: comparable with a dataset maximum.
        driven: False where the image drives the objective no more than noise does on average.
        entries: the parametrisation's own numbers, from which another ascent may go on.
    """

    images: UInt8[Tensor, "U 64 64 3"]
    achieved: Float[Tensor, " U"]
    peak: Float[Tensor, " U"]
    driven: Bool[Tensor, " U"]
    entries: Float[Tensor, "U ..."]


def optimise_images(
    agent: TappedAgent,
    tap: str,
    objectives: Sequence[Objective],
    colours: ColourStatistics,
    *,
    sae: SAEBase | None = None,
    inside: Inside | None = None,
    begin: Float[Tensor, "U ..."] | None = None,
    settings: OptimisationSettings | None = None,
    precision: Precision = DEFAULT_PRECISION,
) -> OptimisedImages:
    """Find an image for every objective.

    The gradients of the network's parameters, and the global random state, are left alone. Call it in eval mode; it
    may be called under `inference_mode`.

    Args:
        agent: the network, on any device.
        tap: where the units are; `logits` and `value` are taps too.
        objectives: one image each. The same one several times gives as many images, which `settings.diversity` keeps
            apart.
        colours: of the game, from `game_colours`.
        sae: an autoencoder on the tap, whose latents the units then are; channels of the tap without it.
        inside: optimise only a part of a real frame.
        begin: entries of other images, made with the same parametrisation, to go on from; each objective begins with
            the best of `settings.starts` random images without it.
        settings: how.
        precision: of the network's passes.

    Raises:
        ValueError: an unknown tap, a unit or position that it does not have, no objective, a mask of another size or
            beyond 0 to 1, entries of another number or parametrisation.
    """
    settings = settings or OptimisationSettings()
    with torch.inference_mode(False), torch.no_grad():
        device = next(agent.parameters()).device
        response = Response(agent, tap, objectives, sae, precision)
        scene = _Scene(inside, device)
        generator = torch.Generator().manual_seed(settings.seed)
        images_of = PARAMETRISATIONS[settings.parametrisation]
        noise = images_of(settings.starts, colours, settings.decay, generator).to(device)
        before_UK, after_UK = response.to_all(scene(noise.as_shown()))
        groups = _same(objectives)
        if begin is None:
            image = noise.select(_starts(before_UK, groups if settings.diversity > 0 else []))
        else:
            image = noise.resumed(begin, len(objectives))
        unlikeness = Unlikeness(colours, settings.smoothness, settings.palette).to(device)
        _ascend(image, response, scene, unlikeness, groups, settings, generator)
        shown = (scene(image()) * 255).round() / 255
        final = response.driven(shown)
        pixels = (shown * 255).round().to(torch.uint8)
        driven = final.goal > after_UK.mean(1)
        entries = image.entries.detach().cpu()
        return OptimisedImages(pixels.cpu(), final.goal.cpu(), final.maps.amax((1, 2)).cpu(), driven.cpu(), entries)


class _Scene:
    """Puts an optimised image into the frame of which it is a part."""

    def __init__(self, inside: Inside | None, device: torch.device) -> None:
        self._inside = inside
        if inside is None:
            return
        frame, mask = inside
        if frame.shape != (SIZE, SIZE, 3) or mask.shape != (SIZE, SIZE):
            raise ValueError(f"a frame of {tuple(frame.shape)} and a mask of {tuple(mask.shape)}: both are 64 x 64")
        if not (mask.min() >= 0 and mask.max() <= 1 and mask.max() > 0):
            raise ValueError("a mask is the share of the optimised image at each pixel, 0 to 1, somewhere above 0")
        self._frame = frame.to(device).float() / 255
        self._mask = mask.to(device).float()[:, :, None]

    def __call__(self, images: Float[Tensor, "U 64 64 3"]) -> Float[Tensor, "U 64 64 3"]:
        if self._inside is None:
            return images
        return self._frame + self._mask * (images - self._frame)


def _same(objectives: Sequence[Objective]) -> list[list[int]]:
    """Rows of equal objectives."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, objective in enumerate(objectives):
        key = tuple(tuple(part.tolist()) if isinstance(part, Tensor) else part for part in objective)
        groups.setdefault((type(objective), *key), []).append(row)
    return list(groups.values())


def _starts(drive_UK: Float[Tensor, "U K"], apart: Sequence[Sequence[int]]) -> Tensor:
    """The random image that each begins with: the one that drives it most, and in groups the second best and on."""
    ranked_UK = drive_UK.argsort(1, descending=True)
    rank = torch.zeros(len(drive_UK), dtype=torch.int64)
    for rows in apart:
        rank[rows] = torch.arange(len(rows)) % drive_UK.shape[1]
    return ranked_UK.gather(1, rank[:, None].to(drive_UK.device))[:, 0]


def _ascend(
    image: GameImages,
    response: Response,
    scene: _Scene,
    unlikeness: Unlikeness,
    groups: Sequence[Sequence[int]],
    settings: OptimisationSettings,
    generator: torch.Generator,
) -> None:
    """Optimise the images in place."""
    parameters = list(image.parameters())
    optimiser = torch.optim.Adam(parameters, settings.learning_rate)
    for step in tqdm(range(settings.steps), desc="optimise images", unit="step", leave=False):
        with torch.enable_grad():
            images = image()
            opened = step < settings.opening * settings.steps
            shaken = _shaken(scene(images), settings, generator)
            driven = response.driven(shaken, leak=settings.leak, opened=opened)
            penalty = unlikeness(images)
            if settings.diversity > 0:
                penalty = penalty + settings.diversity * likeness(driven.channels, groups)
            loss = (driven.gain.detach().clamp(min=0) * penalty - driven.gain).sum()
        # autograd.grad rather than backward(): no .grad of the network is written
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()


def _shaken(
    images: Float[Tensor, "U 64 64 3"], settings: OptimisationSettings, generator: torch.Generator
) -> Float[Tensor, "U 64 64 3"]:
    """Each image shifted, turned and scaled a little, at random; its mirror image shows beyond the edge.

    These are its crops too: a network that takes 64 pixels sees a smaller or larger part of an image at another place
    as that image scaled and shifted, so that nothing else would come of cropping.
    """
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
