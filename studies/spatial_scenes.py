"""Where the spatial intervention takes place: states, each with a cell that the agent is to be drawn to."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

import numpy as np

from environments import EnvironmentSettings, State, held_out_levels
from environments.heist import choice_maze, empty_room, move_entity, occupied_cells, pickup_order
from environments.heist.layout import Cell
from environments.heist.random_mazes import walks_from
from environments.state import WALL
from interpretability.episodes import first_states
from studies.retargeting_search import ASKED

_APART = 3  # cells, along either axis, from a place to its mirror image
_LEVELS = 4  # looked through for each scene that is asked for


class Scene(NamedTuple):
    """A state and a place in it.

    Attributes:
        state: of heist.
        place: a free cell that can be walked to, with no entity in it or next to it.
        sham: the place mirrored through the middle of the world; perhaps a wall.
        target: what the shortest solution fetches first.
    """

    state: State
    place: Cell
    sham: Cell
    target: str

    def target_there(self) -> State:
        """The same state with the target at the place."""
        return move_entity(self.state, self.target, self.place)


def _room(base: State, rng: np.random.Generator) -> State:
    end = base.grid.shape[0] - 1
    corners = [(0, 0), (0, end), (end, 0), (end, end)]
    player = (int(rng.integers(1, end)), int(rng.integers(1, end)))
    return empty_room(base, {"gem": corners[rng.integers(4)]}, player=player)


def _choice(base: State, rng: np.random.Generator) -> State:
    one, other = rng.permutation(len(ASKED))[:2]
    return choice_maze(base, rng, entities=(ASKED[one], ASKED[other]), distances=(2, 6))


KINDS: Final[Mapping[str, Callable[[State, np.random.Generator], State]]] = {
    "room": _room,
    "choice": _choice,
    "natural": lambda base, rng: base,
}
"""How a state is made of a level's first one: a room without walls, the gem in a corner; a maze of two entities to
choose from; the level as it is."""


def walkable(state: State) -> dict[Cell, int]:
    """Free cells that the player can come to without opening a lock or ending the level, and the moves to each."""
    taken = occupied_cells(state)
    barred = {cell for cell, names in taken.items() if any(name == "gem" or name.endswith("lock") for name in names)}
    free = {(x, y) for y, x in np.argwhere(state.grid != WALL).tolist()} - barred
    player = next(cell for cell, names in taken.items() if "player" in names)
    return walks_from(free, player).distance


def find_scenes(
    kind: str,
    split: Literal["validation", "test"],
    count: int,
    *,
    settings: EnvironmentSettings,
    distances: tuple[int, int],
    seed: int = 0,
) -> list[Scene]:
    """A scene on each of the first levels of a split that have room for one.

    Args:
        kind: one of `KINDS`.
        split: of levels.
        count: how many scenes.
        settings: heist's.
        distances: least and greatest number of moves from the player to the place.
        seed: of states and places.

    Raises:
        ValueError: too few levels have a place as far away.
    """
    found: list[Scene] = []
    for data in first_states(held_out_levels(split, _LEVELS * count), settings):
        base = State.from_bytes(data)
        rng = np.random.default_rng([seed, base.level_seed])
        state = KINDS[kind](base, rng)
        end = state.grid.shape[0] - 1
        things = list(occupied_cells(state))
        cells = [
            (x, y)
            for (x, y), moves in walkable(state).items()
            if distances[0] <= moves <= distances[1]
            and all(max(abs(x - a), abs(y - b)) > 1 for a, b in things)
            and max(abs(end - 2 * x), abs(end - 2 * y)) >= _APART
        ]
        order = pickup_order(state)
        if cells and order:
            x, y = cells[rng.integers(len(cells))]
            found.append(Scene(state, (x, y), (end - x, end - y), order[0]))
        if len(found) == count:
            return found
    raise ValueError(
        f"only {len(found)} of {count} {kind} scenes have a free place {distances[0]} to {distances[1]} moves away: "
        "allow other distances, or ask for fewer"
    )
