"""A key round a corner in every orientation, arranged so that one thing at a time can be compared.

The key lies in one of four quadrants, seen from the player. Two ways lead to the same cell: along the row first, or
along the column first. Behind the player, or beside it, a lock and the gem wait in one of the two directions that lead
away from the key. So two scenes with the same quadrant and the same place of the gem differ in nothing but the walls,
and the first step cannot be told from where the key or the gem lies.
"""

from typing import Final

from environments.heist.layout import Cell
from environments.heist.mazes import corner_maze
from environments.state import State

QUADRANTS: Final = ((1, 1), (-1, 1), (-1, -1), (1, -1))
"""Signs of (x, y) from the player to the key; y upwards."""
AXES: Final = ("row", "column")
"""Along which the first leg runs, and along which the gem lies."""


def corner_scenes(
    state: State, entity: str, player: Cell, reach: tuple[int, int] = (3, 3), blocked: int | None = None
) -> list[State]:
    """Sixteen scenes in one level: for each quadrant, the first leg along row or column, the gem along row or column.

    Args:
        state: of heist.
        entity: what lies round the corner: a key, or the gem, with which the last axis changes nothing.
        player: its cell, the same in all scenes.
        reach: cells from the player to the entity, along the row and along the column.
        blocked: opens both ways, but for one cell so many moves from the player on the longer one, so that what is
            next to the player is the same in both.

    Raises:
        ValueError: as `corner_maze`.
    """
    return [
        corner_maze(
            state,
            entity,
            quarter_turns=_TURNS[quadrant, axis][0],
            mirrored=_TURNS[quadrant, axis][1],
            legs=reach if axis == 0 else (reach[1], reach[0]),
            aside=gem != axis,
            blocked=blocked,
            player=player,
        )
        for quadrant in QUADRANTS
        for axis in (0, 1)
        for gem in (0, 1)
    ]


def _turns() -> dict[tuple[Cell, int], tuple[int, bool]]:
    """Quarter turns of a corner, and whether it is mirrored before, by quadrant and axis of the first leg."""
    found: dict[tuple[Cell, int], tuple[int, bool]] = {}
    for mirrored in (False, True):
        first, second = (-1 if mirrored else 1, 0), (0, 1)
        for turns in range(4):
            found[(first[0] + second[0], first[1] + second[1]), int(first[0] == 0)] = turns, mirrored
            first, second = (-first[1], first[0]), (-second[1], second[0])
    return found


_TURNS: Final = _turns()
