"""What an atlas shows of each unit of a tap, gathered from frames of the game in two passes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from interpretability.colour import ColourStatistics
from interpretability.dataset_examples import DatasetExamples
from interpretability.image_objectives import Unit
from interpretability.optimised_images import OptimisationSettings, OptimisedImages, optimise_images
from interpretability.signed_taps import falls_below_zero
from interpretability.unit_effects import unit_effects
from interpretability.unit_numbers import UnitNumbers
from networks import DEFAULT_PRECISION, Precision, SAEBase, TappedAgent

BANDS = (0.9, 0.5, 0.1)
"""Quantiles, among a unit's active frames, of the highest activation in a frame."""

Batches = Callable[[], Iterable[Any]]


@dataclass
class AtlasUnits:
    """All units of one kind: an autoencoder's latents, or the channels of its tap.

    Attributes:
        kind: `latent`, `channel`, or on a tap that falls below 0 `below`: what of each channel lies there, turned over.
        sae: whose latents; None for channels.
        numbers: over all frames.
        best: the frames that drive each unit most.
        bands: frames at the quantiles of `BANDS`.
        directions: what one more of each unit adds to the tap's channels (of a wide kernel, around its position).
        whole: images for the mean over the map.
        single: images for the position of the best example; None for flat taps.
        effects: on each logit, see `unit_effects`; NaN for units that the sample did not show active.
        effect_frames: how many frames each mean effect is over.
    """

    kind: str
    sae: SAEBase | None
    directions: Float[Tensor, "U C K K"]
    best: DatasetExamples
    numbers: UnitNumbers
    bands: list[DatasetExamples] = field(default_factory=list)
    whole: OptimisedImages | None = None
    single: OptimisedImages | None = None
    effects: Float[np.ndarray, "U A"] = field(default_factory=lambda: np.zeros((0, 0)))
    effect_frames: list[int] = field(default_factory=list)

    @property
    def sign(self) -> Literal[1, -1]:
        """Which side of the channels the units are."""
        return -1 if self.kind == "below" else 1

    def name(self, number: int) -> str:
        """A unit's, for people."""
        return f"channel {number}, below 0" if self.kind == "below" else f"{self.kind} {number}"

    def maps(self, acts: Tensor) -> Float[Tensor, "B U H W"]:
        """The units' activations from the tap's, a flat tap's as maps of 1 x 1."""
        found = self.sign * acts.float() if self.sae is None else self.sae.encode(acts)
        return found[:, :, None, None] if found.ndim == 2 else found

    def __len__(self) -> int:
        return len(self.directions)


@dataclass(frozen=True)
class AtlasSettings:
    """How much an atlas shows.

    Attributes:
        best: examples that drive a unit most.
        per_band: examples at each quantile of `BANDS`.
        effect_sample: frames, spread over all, among which those are sought on which a unit is active.
        effect_frames: of these at most so many a unit.
        optimisation: how images are made.
        one_per_level: examples are of different levels.
        diversity: weight of an example's likeness to those before it among those that drive a unit most, see
            `DatasetExamples`.
    """

    best: int = 8
    per_band: int = 8
    effect_sample: int = 4_096
    effect_frames: int = 128
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    one_per_level: bool = True
    diversity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("best", "per_band", "effect_sample", "effect_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"atlas settings: {name} is {getattr(self, name)}: at least 1 is needed")
        if self.diversity < 0:
            raise ValueError(f"atlas settings: diversity is {self.diversity}: it must not be negative")


def gather_units(
    agent: TappedAgent,
    tap: str,
    sae: SAEBase | None,
    batches: Batches,
    num_frames: int,
    colours: ColourStatistics,
    *,
    channels: bool = True,
    whole_world: bool = False,
    settings: AtlasSettings | None = None,
    precision: Precision = DEFAULT_PRECISION,
) -> list[AtlasUnits]:
    """Look at every unit.

    Args:
        agent: in eval mode.
        tap: whose channels, and whose autoencoder's latents.
        sae: None for the channels alone.
        batches: gives the same `ActivationBatch`es of whole maps with frames each time it is called, which is twice.
        num_frames: in all batches together.
        colours: of the game.
        channels: gather the tap's channels too; where it falls below 0, both sides of them.
        whole_world: whether frames show heist's whole world; only then is it known where entities are.
        settings: how much.
        precision: of the network's passes.

    Raises:
        ValueError: neither latents nor channels, or no frame at all.
    """
    settings = settings or AtlasSettings()
    device = next(agent.parameters()).device
    signed = falls_below_zero(agent, tap)
    kinds: list[tuple[str, SAEBase | None, Tensor]] = []
    if sae is not None:
        kinds.append(("latent", sae, sae.directions().detach().cpu()))
    if channels:
        one = torch.eye(agent.taps[tap][0])[:, :, None, None]
        kinds += [("channel", None, one), *([("below", None, -one)] if signed else [])]
    if not kinds:
        raise ValueError("an atlas needs an autoencoder, or channels: true")
    groups = [
        AtlasUnits(
            kind,
            of,
            directions,
            DatasetExamples(settings.best, settings.one_per_level, diversity=settings.diversity),
            UnitNumbers(len(directions), signed and of is None),
        )
        for kind, of, directions in kinds
    ]
    with torch.no_grad():
        for batch in batches():
            acts = batch.activations[tap].to(device)
            for group in groups:
                maps = group.maps(acts)
                group.best.update(batch.frames, maps, batch.levels)
                group.numbers.update(maps, batch.labels, whole_world)
        _second_pass(agent, tap, groups, batches, max(num_frames // settings.effect_sample, 1), settings, precision)
    for group in groups:
        _optimise(agent, tap, group, colours, settings.optimisation, precision)
    return groups


def _second_pass(
    agent: TappedAgent,
    tap: str,
    groups: Sequence[AtlasUnits],
    batches: Batches,
    stride: int,
    settings: AtlasSettings,
    precision: Precision,
) -> None:
    """Examples at quantiles, which only the first pass has told, and effects on a sample of frames."""
    device = next(agent.parameters()).device
    sample: list[UInt8[Tensor, "n 64 64 3"]] = []
    active: list[list[Tensor]] = [[] for _ in groups]
    for group in groups:
        targets = [group.numbers.peaks.quantile(share) for share in BANDS]
        group.bands = [DatasetExamples(settings.per_band, settings.one_per_level, target) for target in targets]
    for batch in batches():
        acts = batch.activations[tap].to(device)
        sample.append(batch.frames[::stride].clone())
        for group, found in zip(groups, active, strict=True):
            maps = group.maps(acts)
            found.append((maps[::stride].amax((2, 3)) > 0).cpu())
            for examples in group.bands:
                examples.update(batch.frames, maps, batch.levels)
    frames = torch.cat(sample)
    for group, found in zip(groups, active, strict=True):
        chosen = [_spread(rows.nonzero()[:, 0], settings.effect_frames) for rows in torch.cat(found).T]
        group.effects = unit_effects(agent, tap, frames, chosen, sae=group.sae, sign=group.sign, precision=precision)
        group.effect_frames = [len(rows) for rows in chosen]


def _spread(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spread: neighbours in a stream look alike."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]


def _optimise(
    agent: TappedAgent,
    tap: str,
    group: AtlasUnits,
    colours: ColourStatistics,
    settings: OptimisationSettings,
    precision: Precision,
) -> None:
    wanted = [Unit(number, sign=group.sign) for number in range(len(group))]
    flat = len(agent.taps[tap]) == 1
    if not flat:
        wanted += [Unit(number, group.best.of_unit(number)[0].peak, group.sign) for number in range(len(group))]
    found = optimise_images(agent, tap, wanted, colours, sae=group.sae, settings=settings, precision=precision)
    group.whole = OptimisedImages(*(part[: len(group)] for part in found))
    if not flat:
        group.single = OptimisedImages(*(part[len(group) :] for part in found))


def cosines(of: Float[Tensor, "U C K K"], to: Float[Tensor, "V C L L"]) -> Float[np.ndarray, "U V"]:
    """Cosines between what units add to a tap; a smaller kernel lies in the middle of a larger one.

    A unit that adds nothing has cosine 0 with all.
    """
    size = max(of.shape[-1], to.shape[-1])

    def unit_rows(kernels: Tensor) -> Tensor:
        margin = (size - kernels.shape[-1]) // 2
        rows = torch.nn.functional.pad(kernels, [margin] * 4).flatten(1).double()
        return torch.nn.functional.normalize(rows, dim=1)

    return (unit_rows(of) @ unit_rows(to).T).numpy()
