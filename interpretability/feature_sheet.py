"""One sheet for a tap: what its units want to see, beside what in the game drives them most."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, UInt8
from torch import Tensor

from interpretability.colour import ColourStatistics
from interpretability.dataset_examples import DatasetExamples, Example
from interpretability.image_objectives import LayerDirection, Objective, Unit
from interpretability.optimised_images import OptimisationSettings, OptimisedImages, optimise_images
from interpretability.pictures import TILE, Row, Tile, enlarge, outlined, sheet, spotlight
from interpretability.receptive_fields import ReceptiveField, receptive_field
from networks import DEFAULT_PRECISION, Precision, SAEBase, TappedAgent, TappedNetwork

_LARGEST_PATCH = 32  # pixels; a larger receptive field shows so much that the whole frame is plainer


@dataclass(frozen=True)
class FeatureSheet:
    """What a sheet shows, and the sheet.

    Attributes:
        units: the units shown, top to bottom.
        whole: an image a unit for its mean over the map; None where a network sees more than one frame.
        single: an image a unit for the position of its best example; None for flat taps too, where it is the same.
        picture: the sheet.
    """

    units: list[int]
    whole: OptimisedImages | None
    single: OptimisedImages | None
    picture: UInt8[Tensor, "H W 3"]


def draw_feature_sheet(
    agent: TappedNetwork,
    tap: str,
    units: Sequence[int],
    examples: DatasetExamples,
    colours: ColourStatistics,
    *,
    sae: SAEBase | None = None,
    settings: OptimisationSettings | None = None,
    precision: Precision = DEFAULT_PRECISION,
    title: str,
    directions: Float[Tensor, "G U"] | None = None,
    names: Sequence[str] | None = None,
) -> FeatureSheet:
    """Optimise images for units and lay them out beside their dataset examples.

    What drives a unit of a network that sees more than one frame is no image: there are examples alone.

    Args:
        agent, tap, sae, settings, precision: as for `optimise_images`.
        units: which channels, or latents of the autoencoder where one is given.
        examples: gathered on frames of the game, for all units of the tap.
        colours: of those frames.
        title: of the sheet.
        directions: over the units, to be shown in their place: `units` and `examples` are then those of the rows.
        names: a heading for each of all units (or directions); their kinds and numbers without it.
    """
    found = [examples.of_unit(unit) for unit in units]
    flat = found[0][0].heat.numel() == 1
    whole = single = patch = None
    if isinstance(agent, TappedAgent):
        wanted = [_objective(unit, None, directions) for unit in units]
        if not flat:
            wanted += [_objective(unit, best[0].peak, directions) for unit, best in zip(units, found, strict=True)]
        images = optimise_images(agent, tap, wanted, colours, sae=sae, settings=settings, precision=precision)
        whole = OptimisedImages(*(part[: len(units)] for part in images))
        single = None if flat else OptimisedImages(*(part[len(units) :] for part in images))
        patch = patch_field(agent, tap, sae)
    rows = []
    for index, unit in enumerate(units):
        maximum = float(examples.maximum[unit])
        tiles: list[Tile] = []
        if whole is not None:
            tiles.append(_image_tile(whole, whole.peak, index, maximum))
        if single is not None:
            tiles.append(_image_tile(single, single.achieved, index, maximum))
        name = f"{'latent' if sae else 'channel'} {unit}" if names is None else names[unit]
        row = example_row(examples, unit, name, patch)
        rows.append(row._replace(tiles=[*tiles, *row.tiles]))
    columns = [("optimised", 1)] if flat else [("whole map", 1), ("one position", 1)]
    if whole is None:
        columns = []
    seen = "frames" if patch is None else f"patches of {patch.size[0]} x {patch.size[1]} pixels"
    columns += [(f"its best {seen} in the game", examples.per_unit)]
    text = _explanation(examples, flat, patch is not None)
    if whole is None:
        text = [text[1].removeprefix("Right: ").capitalize()]
    return FeatureSheet(list(units), whole, single, sheet(title, text, columns, rows))


def _objective(unit: int, position: tuple[int, int] | None, directions: Float[Tensor, "G U"] | None) -> Objective:
    return Unit(unit, position) if directions is None else LayerDirection(directions[unit], position)


def patch_field(agent: TappedAgent, tap: str, sae: SAEBase | None) -> ReceptiveField | None:
    """The receptive field, if it is small enough that showing it alone is plainer than showing the frame."""
    field = receptive_field(agent, tap)
    if field is not None and sae is not None:
        field = field.widened(sae.kernel_size)
    return field if field is not None and max(field.size) <= _LARGEST_PATCH else None


def _image_tile(images: OptimisedImages, reached: Float[Tensor, " U"], index: int, maximum: float) -> Tile:
    if not images.driven[index]:
        return Tile(images.images[index], "could not be driven")
    value = float(reached[index])
    return Tile(images.images[index], f"{value:.3g}" + (f"  ({value / maximum:.1f} x)" if maximum > 0 else ""))


def _example_tile(example: Example, maximum: float, patch: ReceptiveField | None) -> Tile:
    level = "" if example.level < 0 else f"  level {example.level}"
    caption = f"{example.score:.3g}{level}" if example.score > 0 else f"never active{level}"
    if patch is not None:
        return Tile(patch.cut(example.frame, *example.peak), caption)
    if example.heat.numel() == 1 or example.score <= 0:
        return Tile(example.frame, caption)
    height, width = (TILE / side for side in example.heat.shape)
    y, x = example.peak
    lit = enlarge(spotlight(example.frame, example.heat, maximum))
    return Tile(outlined(lit, (y * height, x * width, (y + 1) * height, (x + 1) * width)), caption)


def example_row(examples: DatasetExamples, unit: int, name: str, patch: ReceptiveField | None) -> Row:
    """A unit's examples under its name, with how often it is active; gaps where there are fewer than were asked for.

    Args:
        examples: of all units.
        unit: which.
        name: its heading.
        patch: to be cut out around the peak; None shows whole frames.
    """
    found, maximum = examples.of_unit(unit), float(examples.maximum[unit])
    tiles: list[Tile | None] = [_example_tile(example, maximum, patch) for example in found]
    tiles += [None] * (examples.per_unit - len(found))
    of = "of frames" if found[0].heat.numel() == 1 else "of positions"
    lines = [f"active at {float(examples.frequency[unit]):.1%}", of, f"highest {maximum:.3g}"]
    return Row(name, lines, tiles)


def example_text(examples: DatasetExamples, lit: bool) -> str:
    """What a sheet's examples are.

    Args:
        examples: shown.
        lit: whether whole frames are shown, lit where the unit is active.
    """
    each = ", at most one a level" if examples.one_per_level else ""
    text = f"The best of {examples.num_frames:,} frames{each}. Below: the unit's highest activation."
    return text + " Light shows where it is active, the box its peak." if lit else text


def _explanation(examples: DatasetExamples, flat: bool, patches: bool) -> list[str]:
    goal = "the unit" if flat else "the mean of the unit's map, or the one position that was highest in the game"
    left = f"Left: images optimised to drive {goal}. Below: the highest activation reached (x the highest in the game)."
    return [left, f"Right: {example_text(examples, not flat and not patches)}"]
