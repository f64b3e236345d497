"""States in which what natural play ties together varies freely: colour, order, what is left, what is held, places.

In natural levels the target's colour says how many keys are held, which entities are left and about how far into the
level the player is. Here each is drawn on its own, and then a maze is looked for that shows what was drawn:

- the target: blue, green or red key, or the gem
- its cell, anywhere in the world
- the first move towards it, and the number of moves
- how many keys lie in the maze, one or two, and how many are held, none or one; which colours, and in which order the
  solution fetches them, follows from chance

Where the target is the gem, the keys that lie about are not needed. What cannot be drawn on its own: the target's
colour lies in the maze and is not held, and the path has to fit into the maze, so that long ones need large mazes.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from environments.heist.layout import COLOURS, ENTITIES, Cell, read_layout
from environments.heist.mazes import SCATTER, write_maze
from environments.heist.oracle import DIRECTION_STEPS, advise
from environments.heist.random_mazes import Walks, free_cells, maze_sizes, placed_floor, sample_cells, walks_from
from environments.heist.scenarios import put_at
from environments.state import State

TARGETS: Final = ("blue_key", "green_key", "red_key", "gem")
PATH_LENGTHS: Final = range(5, 15)
"""Moves to the target. On shorter paths a target at the world's edge could not be walked up to from every side, so that
its place and the first move towards it would depend on each other."""
_ATTEMPTS: Final = 20_000


class Wanted(NamedTuple):
    """What a deconfounded state is to show, each drawn uniformly and on its own.

    Attributes:
        target: name of the entity to reach next.
        cell: where it lies.
        direction: index into `DIRECTIONS` of the first move towards it.
        path_length: moves to it.
        lying: how many keys lie in the maze.
        held: how many keys are held.
    """

    target: str
    cell: Cell
    direction: int
    path_length: int
    lying: int
    held: int


def deconfound(state: State, rng: np.random.Generator) -> State:
    """A random maze in the world of a state, whose labels are independent of each other over many draws.

    Args:
        state: of heist; its level seed, theme and random generators stay, so splits by level hold.
        rng: draws everything.

    Returns:
        An edited copy, which the oracle solves.
    """
    side = state.grid.shape[0]
    wanted = Wanted(
        target=TARGETS[rng.integers(len(TARGETS))],
        cell=(int(rng.integers(side)), int(rng.integers(side))),
        direction=int(rng.integers(len(DIRECTION_STEPS))),
        path_length=int(rng.integers(PATH_LENGTHS.start, PATH_LENGTHS.stop)),
        lying=int(rng.integers(1, 3)),
        held=int(rng.integers(2)),
    )
    sizes = maze_sizes(side, None)
    for _ in range(_ATTEMPTS):
        floor = placed_floor(rng, side, int(rng.choice(sizes)))
        x, y = wanted.cell
        if not floor[y, x]:
            continue
        cells = free_cells(floor)
        player = _find_player(rng, walks_from(set(cells), wanted.cell), wanted)
        if player is None:
            continue
        places, held = _place(rng, walks_from(set(cells), player), wanted)
        if not places:
            continue
        made = write_maze(state, floor, places, player, held=held, rng=rng)
        if _shows(made, wanted):
            x, y = np.add(player, 0.5) + rng.uniform(-SCATTER, SCATTER, 2)
            put_at(made, 0, float(x), float(y))
            return made
    raise AssertionError(f"no maze of a world of {side} cells shows {wanted}")


def deconfounded_states(states: Sequence[bytes], *, seed: int = 0) -> list[bytes]:
    """A deconfounded state for each saved one; it depends on `seed` and the state's level only.

    Args:
        states: of heist; their level seeds, and so their split, are kept.
        seed: of all draws.
    """
    parsed = map(State.from_bytes, states)
    return [deconfound(state, np.random.default_rng([seed, state.level_seed])).to_bytes() for state in parsed]


def _find_player(rng: np.random.Generator, walks: Walks, wanted: Wanted) -> Cell | None:
    """A cell from which the target lies as far and in that direction."""
    dx, dy = DIRECTION_STEPS[wanted.direction]
    found = [
        cell
        for cell, distance in walks.distance.items()
        if distance == wanted.path_length and walks.parent[cell] == (cell[0] + dx, cell[1] + dy)
    ]
    return found[rng.integers(len(found))] if found else None


def _place(rng: np.random.Generator, walks: Walks, wanted: Wanted) -> tuple[list[tuple[str, Cell]], list[str]]:
    """Everything in the maze, and the held colours; nothing where there is no room.

    The lock of a target key bars the way to the gem. The others stand wherever there is room, off the way to the
    target; a held key's lock is open, and so gone, in half of the cases.
    """
    way = walks.path(wanted.cell)
    room = sample_cells(rng, [cell for cell in walks.parent if cell not in way])
    colours = [COLOURS[index] for index in rng.permutation(len(COLOURS))]
    places = [(wanted.target, wanted.cell)]
    if wanted.target != "gem":
        own = wanted.target.split("_")[0]
        colours.remove(own)
        colours.insert(0, own)
        if not room:
            return [], []
        gem = room.pop()
        barriers = [cell for cell in walks.path(gem) if cell in room]
        if not barriers:
            return [], []
        lock = barriers[rng.integers(len(barriers))]
        room.remove(lock)
        places += [("gem", gem), (f"{own}_lock", lock)]
    lying, held = colours[: wanted.lying], colours[wanted.lying : wanted.lying + wanted.held]
    others = [f"{c}_{what}" for c in lying if f"{c}_key" != wanted.target for what in ("key", "lock")]
    others += [f"{colour}_lock" for colour in held if rng.random() < 0.5]
    if len(others) > len(room):
        return [], []
    return [*places, *zip(others, room, strict=False)], held


def _shows(state: State, wanted: Wanted) -> bool:
    """Whether the solution begins as wanted, and there is one."""
    advice = advise(read_layout(state))
    return (
        advice.target == ENTITIES.index(wanted.target)
        and advice.path_length == wanted.path_length
        and advice.directions == 1 << wanted.direction
    )
