"""An atlas of units as a folder of files that a browser opens from the disk: no server and no network."""

import base64
import html
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from environments.heist import ENTITIES
from environments.heist.oracle import DIRECTIONS
from interpretability.atlas_units import BANDS, AtlasUnits, cosines
from interpretability.dataset_examples import Example
from interpretability.episode_page import sprite_sheet
from interpretability.observed_episode import ACTION_ARROWS, ACTION_NAMES, COMPASS
from interpretability.receptive_fields import ReceptiveField
from interpretability.unit_numbers import UnitNumbers

Site = dict[str, bytes]
"""Path inside the folder -> content; it is opened at `index.html`."""

_NEIGHBOURS = 6
_HISTOGRAM_BARS = 32
_WORTH_AUC, _WORTH_EFFECT = 0.6, 0.05  # what is less is not worth a word
_DIGITS = 4  # of every number in the data


def atlas_columns(labelled: bool) -> list[dict[str, Any]]:
    """The numbers of a unit: key, heading, what it is, how it is written; `strength` is what paints its cell."""
    columns: list[dict[str, Any]] = [
        _column("frequency", "fires", "share of positions where it is above 0", style="share"),
        _column("frames", "frames", "share of frames in which it is above 0 somewhere", style="share"),
        _column("mean", "mean active", "mean activation where it is above 0"),
        _column("maximum", "highest", "highest activation at any position of any frame"),
        _column("driven", "image reaches", "highest activation on its optimised images / highest in the game", "fixed"),
    ]
    if labelled:
        about = "highest AUC of its activation at a position for an entity's presence there; 0.5 is chance"
        columns.append(_column("auc", "best AUC", about, "fixed", (0.5, 1)))
        for name in ENTITIES:
            about = f"AUC of its activation at a position for the {name.replace('_', ' ')}'s presence there"
            columns.append(_column(name, name.replace("_", " "), about, "fixed", (0.5, 1), panel=True))
        about = "share of its variance over frames (mean of the map) that the shortest way's first move explains"
        columns.append(_column("direction", "direction", about, "fixed", (0, 0.5)))
    return [
        *columns,
        _column("effect", "effect", "largest mean effect on a move's logit, of taking it out where active", "fixed"),
        _column("channel", "nearest channel", "highest cosine of its direction with a raw channel", "fixed", (0, 1)),
        _column("alike", "nearest latent", "highest cosine of its direction with another latent", "fixed", (0, 1)),
        _column(
            "partner", "co-active", "highest correlation of being active with another of its kind", "fixed", (0, 1)
        ),
    ]


def _column(
    key: str,
    label: str,
    about: str,
    style: str = "plain",
    strength: tuple[float, float] | None = None,
    panel: bool = False,
) -> dict[str, Any]:
    return {"key": key, "label": label, "help": about, "style": style, "strength": strength, "panel": panel}


def draw_atlas(
    groups: Sequence[AtlasUnits],
    *,
    title: str,
    lines: Sequence[str],
    field: ReceptiveField | None,
    labelled: bool,
) -> tuple[Site, list[dict[str, Any]]]:
    """The site, and what it says of each unit.

    Args:
        groups: latents before channels, as `gather_units` gives them.
        title: of the page.
        lines: sentences at its foot.
        field: receptive field of the tap's positions; None where they see the whole frame.
        labelled: whether numbers from labels are known.
    """
    columns = atlas_columns(labelled)
    site: Site = {}
    units: list[dict[str, Any]] = []
    thumbnails = []
    for group in groups:
        known = _Known.of(group.numbers)
        for number in range(len(group)):
            unit, tiles = _unit(groups, group, number, known, columns)
            sheet, across = sprite_sheet(np.stack(tiles))
            site[unit["sheet"]] = _png(sheet)
            best = group.best.of_unit(number)
            shown = tiles[len(unit["made"])] if best[0].score > 0 else np.zeros_like(tiles[0])
            thumbnails += [tiles[len(unit["made"]) - 1], shown]
            units.append(unit | {"columns": across, "number_in_all": len(units)})
    sheet, across = sprite_sheet(np.stack(thumbnails))
    site["thumbnails.png"] = _png(sheet)
    data = {
        "title": title,
        "size": list(groups[0].best.of_unit(0)[0].heat.shape),
        "field": None if field is None else {"size": field.size, "stride": field.stride, "offset": field.offset},
        "columns": columns,
        "entities": [name.replace("_", " ") for name in ENTITIES],
        "directions": DIRECTIONS,
        "compass": COMPASS,
        "arrows": ACTION_ARROWS,
        "actions": ACTION_NAMES,
        "thumbnailColumns": across,
        "units": units,
    }
    site["data.js"] = f"const atlas = {json.dumps(data, separators=(',', ':'), allow_nan=False)};\n".encode()
    site["index.html"] = _page(title, lines)
    return site, units


def _page(title: str, lines: Sequence[str]) -> bytes:
    folder = files("interpretability")
    page = (folder / "atlas_page.html").read_text(encoding="utf-8")
    script = (folder / "atlas_page.js").read_text(encoding="utf-8")
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    for place, content in (("TITLE", html.escape(title)), ("LINES", paragraphs), ("SCRIPT", script)):
        page = page.replace(f"<!--{place}-->", content)
    return page.encode()


class _Known(NamedTuple):
    """Numbers of all units of a group at once: each is computed from all of their counts."""

    frequency: Float[np.ndarray, " U"]
    mean_active: Float[np.ndarray, " U"]
    frames: Float[np.ndarray, " U"]
    auc: Float[np.ndarray, "K U"]
    co_activity: Float[np.ndarray, "U U"]
    direction: Float[np.ndarray, " U"]
    direction_means: Float[np.ndarray, "4 U"]

    @classmethod
    def of(cls, numbers: UnitNumbers) -> "_Known":
        return cls(
            numbers.frequency,
            numbers.mean_active,
            numbers.peaks.active().double().numpy(),
            numbers.auc(),
            numbers.co_activity(),
            numbers.direction_selectivity(),
            numbers.direction_means(),
        )


def _unit(
    groups: Sequence[AtlasUnits], group: AtlasUnits, number: int, known: _Known, columns: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What the page is told of one unit, and the tiles of its sheet: images first, then examples."""
    maximum = float(group.best.maximum[number])
    made = [("whole map", group.whole, "peak"), ("one position", group.single, "achieved")]
    images = [(name, found, reached) for name, found, reached in made if found is not None]
    tiles = [found.images[number].numpy() for _, found, _ in images]
    captions = []
    for name, found, reached in images:
        value = float(getattr(found, reached)[number])
        share = f", {value / maximum:.1f} × the highest in the game" if maximum > 0 else ""
        driven = f"reaches {value:.3g}{share}" if found.driven[number] else "could not be driven"
        captions.append(driven if len(images) == 1 else f"{name}: {driven}")
    best_share = max(float(found.peak[number]) for _, found, _ in images) / maximum if maximum > 0 else np.nan
    sections = []
    headings = ["What drives it most in the game"]
    headings += [f"{share:.0%} quantile of the frames in which it is active" for share in BANDS]
    for heading, examples in zip(headings, [group.best, *group.bands], strict=True):
        found_here = [example for example in examples.of_unit(number) if example.score > 0]
        sections.append({"name": heading, "examples": [_example(e, len(tiles) + i) for i, e in enumerate(found_here)]})
        tiles += [example.frame.numpy() for example in found_here]
    if len(tiles) == len(images):  # never active: the thumbnail still needs a picture
        tiles.append(group.best.of_unit(number)[0].frame.numpy())
    neighbours = _alike(groups, group, number)
    partners = _most(known.co_activity[number], number)
    auc, effects = known.auc[:, number], group.effects[number][: len(ACTION_ARROWS)]
    frames = float(known.frames[number]) / group.best.num_frames
    values = {
        "frequency": known.frequency[number],
        "frames": frames,
        "mean": known.mean_active[number],
        "maximum": maximum,
        "driven": best_share,
        "auc": _highest(auc),
        "direction": known.direction[number],
        "effect": _highest(np.abs(effects)),
        "channel": _highest([value for kind, _, value in neighbours if kind != "latent"]),
        "alike": _highest([value for kind, _, value in neighbours if kind == "latent"]),
        "partner": _highest([value for _, value in partners]),
    } | dict(zip(ENTITIES, auc, strict=True))
    means = known.direction_means[:, number]
    kinds = {each.kind for each in groups}
    unit = {
        "id": f"{group.kind}-{number}",
        "name": group.name(number),
        "kind": group.kind,
        "sheet": f"units/{group.kind}_{number}.png",
        "numbers": {each["key"]: _rounded(values[each["key"]]) for each in columns},
        "made": captions,
        "sections": sections,
        "histogram": _rounded_all(group.numbers.values.histogram(number, maximum, _HISTOGRAM_BARS)),
        "entities": _rounded_all(auc),
        "directions": _rounded_all(means) if np.isfinite(means).all() else None,
        "effects": _rounded_all(effects) if np.isfinite(effects).all() else None,
        "effectFrames": group.effect_frames[number],
        "alike": [[f"{kind}-{other}", _rounded(value)] for kind, other, value in neighbours if kind in kinds],
        "together": [[f"{group.kind}-{other}", _rounded(value)] for other, value in partners],
        "line": _in_words(auc, effects, maximum),
    }
    return unit, tiles


def _in_words(auc: Float[np.ndarray, " K"], effects: Float[np.ndarray, " A"], maximum: float) -> str:
    """The shortest that can be said of a unit."""
    if maximum <= 0:
        return "never active"
    words = []
    if _highest(auc) >= _WORTH_AUC:
        best = int(np.nanargmax(auc))
        words.append(f"{ENTITIES[best].replace('_', ' ')} {auc[best]:.2f}")
    if np.isfinite(effects).all() and np.abs(effects).max() >= _WORTH_EFFECT:
        move = int(np.argmax(np.abs(effects)))
        words.append(f"{ACTION_ARROWS[move]} {effects[move]:+.2f}")
    return " · ".join(words) or "marks no entity, sways no move"


def _alike(groups: Sequence[AtlasUnits], group: AtlasUnits, number: int) -> list[tuple[str, int, float]]:
    """Units of either kind whose directions are nearest; (kind, number, cosine), the nearest channel always among
    them.
    """
    own = group.directions[number : number + 1]
    channels = torch.eye(group.directions.shape[1])[:, :, None, None]
    kinds = {each.kind: each.directions for each in groups} | {"channel": channels}
    found = []
    for kind, directions in kinds.items():
        row = cosines(own, directions)[0]
        count = _NEIGHBOURS if kind == "latent" else 2
        found += [(kind, other, value) for other, value in _most(row, number if kind == group.kind else None, count)]
    return [each for each in found if each[2] > 0]


def _most(row: Float[np.ndarray, " U"], but: int | None, count: int = _NEIGHBOURS) -> list[tuple[int, float]]:
    """The highest of a row and where they are, without `but` and what is not above 0."""
    order = np.argsort(-np.nan_to_num(row, nan=-np.inf), kind="stable").tolist()
    return [(other, float(row[other])) for other in order if other != but and row[other] > 0][:count]


def _example(example: Example, tile: int) -> dict[str, Any]:
    # of the frame's own highest: weak examples would be left in the dark
    heat = (example.heat.clamp(min=0) / example.score * 255).round().to(torch.uint8).numpy()
    return {
        "tile": tile,
        "score": _rounded(example.score),
        "level": example.level,
        "place": example.place,
        "peak": list(example.peak),
        "heat": base64.b64encode(heat.tobytes()).decode(),
    }


def _highest(values: Any) -> float:
    known = [float(value) for value in values if np.isfinite(value)]
    return max(known, default=np.nan)


def _rounded(value: Any) -> float | None:
    """A number to a few digits; None for what is no number, as JSON has no NaN."""
    return float(f"{float(value):.{_DIGITS}g}") if np.isfinite(value) else None


def _rounded_all(values: Any) -> list[float | None]:
    return [_rounded(value) for value in values]


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return file.getvalue()
