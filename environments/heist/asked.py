"""The way to any entity that is asked for, whatever the game's own order of pickups."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from environments.heist.labels import Labels, label_states
from environments.heist.layout import GEM, KEY, LOCK
from environments.heist.random_mazes import free_cells, walks_from
from environments.heist.scenarios import copy_state, find_entity, occupied_cells, put_at
from environments.state import WALL, State

_LATERAL: Final = 0.1
"""Cells by which a player strays from the line between two cells' centres at most, in `anywhere`."""
_STEPS: Final = ((1, 0), (-1, 0), (0, 1), (0, -1))


def sole_target(state: State, name: str) -> State:
    """The maze as it is for a player who wants one entity and may touch no other: that one is the gem, the others are
    walls. For labels; it is not meant to be shown to an agent.

    Raises:
        ValueError: the entity is unknown, the player, or not (or no longer) there.
    """
    if name == "player":
        raise ValueError("the player cannot be asked for: name a key, a lock or the gem")
    row = find_entity(state, name)
    edited = copy_state(state)
    kinds = np.isin(state.entities["type"], (KEY, LOCK, GEM)) & (state.entities["will_erase"] == 0)
    for other in np.flatnonzero(kinds).tolist():
        if other != row:
            edited.grid[int(state.entities["y"][other]), int(state.entities["x"][other])] = WALL
    edited.entities["type"][row] = GEM
    kinds[row] = False
    edited.entities = edited.entities[~kinds]
    return edited


def label_asked(states: Sequence[State], name: str) -> Labels:
    """Labels with one entity as the only target (`sole_target`): `directions` is 0 where no way leads to it."""
    return label_states([sole_target(state, name).to_bytes() for state in states])


def anywhere(state: State, rng: np.random.Generator) -> State:
    """The player on its way somewhere among the cells that it can reach without touching anything.

    The cell is drawn uniformly, and so is a way out of it, of which up to half a move is done already, a little to one
    side.
    """
    start = (int(state.entities["x"][0]), int(state.entities["y"][0]))
    free = (set(free_cells(state.grid != WALL)) - set(occupied_cells(state))) | {start}
    cells = list(walks_from(free, start).distance)
    x, y = cells[rng.integers(len(cells))]
    ways = [(dx, dy) for dx, dy in _STEPS if (x + dx, y + dy) in free] or [(0, 0)]
    dx, dy = ways[rng.integers(len(ways))]
    come, aside = rng.uniform(0, 0.5), rng.uniform(-_LATERAL, _LATERAL)
    edited = copy_state(state)
    put_at(edited, 0, x + 0.5 + dx * come + (dx == 0) * aside, y + 0.5 + dy * come + (dy == 0) * aside)
    return edited
