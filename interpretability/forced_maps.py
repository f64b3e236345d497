"""Units whose map is forced at a place of the world: set high there, silenced there, or taken from another state."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from interpretability.row_edits import MapEdit
from interpretability.unit_numbers import entity_positions
from networks.sae_base import SAEBase

Forcing = Literal["peak", "clear", "patch"]
CLEARED = 1.5
"""Cells around a place, along both axes, in which `clear` silences a unit: the place and those next to it."""


def forced_maps(
    forcing: Forcing,
    units: Int64[Tensor, "T G"],
    cells: Sequence[tuple[int, int]],
    side: int,
    shape: tuple[int, int],
    *,
    heights: Float[Tensor, " U"],
    rest: Float[Tensor, " U"] | None = None,
    sources: Float[Tensor, "T G H W"] | None = None,
    whole_cell: bool = False,
    sae: SAEBase | None = None,
) -> MapEdit:
    """The edit by row in which trial t forces `units[t]` at `cells[t]`.

    `peak` puts each unit's height at the place and its rest elsewhere; `clear` puts its rest within `CLEARED` cells of
    the place and leaves what is further away; `patch` puts the maps of `sources` in.

    Args:
        forcing: which.
        units: of each trial.
        cells: (x, y) of each trial, y upwards.
        side: cells a side of the world, which the frame shows whole.
        shape: height and width of the map.
        heights: of all units of the tap.
        rest: likewise, see `resting_values`; None for 0.
        sources: for `patch`.
        whole_cell: a peak covers the positions of the whole cell rather than the one in its middle.
        sae: of latents.

    Raises:
        ValueError: `patch` without sources.
    """
    places = torch.tensor(list(cells)).view(-1, 2)
    height, width = shape
    y = side - (torch.arange(height) + 0.5) * side / height
    x = (torch.arange(width) + 0.5) * side / width
    middle = places + 0.5
    if forcing == "clear":
        near = _near(y, middle[:, 1])[:, :, None] & _near(x, middle[:, 0])[:, None]
        quiet = None if rest is None or not rest.any() else rest[units][:, :, None, None] * near[:, None]
        return MapEdit(units, ~near, quiet, sae)
    keep = torch.zeros(len(places), height, width, dtype=torch.bool)
    if forcing == "patch":
        if sources is None:
            raise ValueError("patch takes maps of other states: give sources")
        return MapEdit(units, keep, sources, sae)
    if whole_cell:
        there = entity_positions(places[:, None], torch.full((len(places),), side), height, width)[0]
    else:
        there = keep.clone()
        row = ((side - middle[:, 1]) * height / side).long().clamp(0, height - 1)
        column = (middle[:, 0] * width / side).long().clamp(0, width - 1)
        there[torch.arange(len(places)), row, column] = True
    rest = torch.zeros_like(heights) if rest is None else rest
    put = torch.where(there[:, None], heights[units][:, :, None, None], rest[units][:, :, None, None])
    return MapEdit(units, keep, put, sae)


def resting_values(maps: Float[Tensor, "F U H W"]) -> Float[Tensor, " U"]:
    """What each unit is when it says nothing: 0 where none of them falls below 0, otherwise its median over all frames
    and positions.
    """
    rows = maps.transpose(0, 1).flatten(1)
    return rows.median(1).values if rows.min() < 0 else rows.new_zeros(len(rows))


def _near(positions: Float[Tensor, " n"], middle: Float[Tensor, " T"]) -> Bool[Tensor, "T n"]:
    return (positions - middle[:, None]).abs() <= CLEARED
