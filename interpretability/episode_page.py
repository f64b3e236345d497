"""An observed episode as one HTML page that stands alone: no server, no network, pictures inside."""

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from environments.heist import ENTITIES, Labels
from interpretability.observed_episode import ACTION_ARROWS, ACTION_NAMES, COMPASS, LATENTS, ObservedEpisode

_TEMPLATE = "episode_page.html"


def episode_page(episode: ObservedEpisode, title: str, lines: Sequence[str]) -> str:
    """The page: the frame, the shown units' maps, the policy and the value at each step, with a slider over the steps.

    Args:
        episode: what is shown.
        title: of the page.
        lines: sentences below it: which agent, which level, how actions were chosen, which edit.
    """
    replay = episode.replay
    divergence = episode.divergence()
    data: dict[str, Any] = {
        "steps": len(replay.frames),
        "compass": COMPASS,
        "arrows": [*ACTION_ARROWS, ""],
        "actionNames": ACTION_NAMES,
        "frames": _sheet(replay.frames),
        "actions": np.minimum(replay.actions, len(ACTION_NAMES) - 1).tolist(),
        "rewards": _rounded(replay.rewards),
        "oracle": None if episode.labels is None else _oracle(episode.labels),
        "divergence": None if divergence is None else _rounded(divergence, 9),  # that of a small edit is small
        "arms": [
            {"name": arm.name, "probabilities": _rounded(arm.probabilities), "values": _rounded(arm.values)}
            for arm in episode.arms
        ],
        "sources": [_source(episode, source) for source in episode.units],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = (files("interpretability") / _TEMPLATE).read_text(encoding="utf-8")
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    for place, content in (("TITLE", html.escape(title)), ("LINES", paragraphs), ("DATA", text)):
        page = page.replace(f"<!--{place}-->", content)
    return page


def sprite_sheet(tiles: UInt8[np.ndarray, "n H W *rgb"]) -> tuple[Image.Image, int]:
    """Tiles in a near-square grid, row by row, and its number of columns; one layer of bytes gets the heat palette."""
    count, height, width = tiles.shape[:3]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, *tiles.shape[1:]), dtype=np.uint8)
    sheet[:count] = tiles
    grid = sheet.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    picture = Image.fromarray(np.ascontiguousarray(grid.reshape(rows * height, columns * width, *tiles.shape[3:])))
    if tiles.ndim == 3:
        picture = picture.convert("P")
        picture.putpalette(heat_palette().tobytes())
    return picture, columns


@cache
def heat_palette() -> UInt8[np.ndarray, "256 3"]:
    """Colours of 256 levels of activation, black at none."""
    colours = matplotlib.colormaps["inferno"](np.arange(256))[:, :3]
    return np.round(colours * 255).astype(np.uint8)


def heat_levels(
    maps: Float[np.ndarray, "T n H W"], limits: Sequence[tuple[float, float]]
) -> UInt8[np.ndarray, "T n H W"]:
    """Maps in 256 levels, each unit from the lower to the upper of its limits."""
    low, high = np.array(limits).T[..., None, None]
    return np.round(255 * ((maps - low) / np.maximum(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)


def unit_name(source: str, unit: int) -> str:
    """What a unit is called."""
    return f"latent {unit}" if source == LATENTS else f"channel {unit}"


def _source(episode: ObservedEpisode, source: str) -> dict[str, Any]:
    limits = episode.limits(source)
    sheets, peaks = [], []
    for arm in episode.arms if source != LATENTS else episode.arms[:1]:
        maps = arm.maps[source]
        sheets.append(_sheet(heat_levels(maps, limits).reshape(-1, *maps.shape[2:])))  # steps outside, units inside
        peaks.append(_rounded(maps.max((2, 3))))
    return {
        "name": "the autoencoder's latents" if source == LATENTS else source,
        "size": list(episode.arms[0].maps[source].shape[2:]),
        "units": [unit_name(source, unit) for unit in episode.units[source]],
        "limits": [[round(low, 3), round(high, 3)] for low, high in limits],
        "sheets": sheets,
        "peaks": peaks,
    }


def _sheet(tiles: np.ndarray) -> dict[str, Any]:
    picture, columns = sprite_sheet(tiles)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return {"columns": columns, "uri": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}


def _oracle(labels: Labels) -> dict[str, Any]:
    targets = [ENTITIES[target].replace("_", " ") if target >= 0 else "nothing" for target in labels.target.tolist()]
    return {"moves": labels.main_action.tolist(), "targets": targets, "lengths": labels.total_length.tolist()}


def _rounded(values: np.ndarray, decimals: int = 4) -> list[Any]:
    return np.round(np.nan_to_num(values.astype(np.float64)), decimals).tolist()
