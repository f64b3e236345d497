"""What else a maze says about the way to the target: the straight line to it, the next turn, and what comes after."""

from functools import lru_cache
from typing import Final, NamedTuple

from environments.heist.layout import Maze
from environments.heist.oracle import GEM_TARGET, NO_TARGET, plan

NO_WAY: Final = -1


class Way(NamedTuple):
    """The way from a cell to the oracle's target.

    Attributes:
        target_cell: cell index of the target, -1 without target.
        wall_between: whether a wall stands on the straight line between the centres of the two cells (the line runs
            through a wall's inside: a corner that it only touches does not count); False without target.
        straight_length: moves along the solution before its first turn or its target; -1 without target.
        after_target: index into `ENTITIES` of the pickup after the target; -1 where the target is the gem or none.
    """

    target_cell: int
    wall_between: bool
    straight_length: int
    after_target: int


@lru_cache(maxsize=65_536)
def way(maze: Maze, held: int, cell: int) -> Way:
    """The way of a player in `cell` with `held` keys; of several shortest ones that which `advise` follows."""
    solution = plan(maze, held)
    advice = solution.advise(cell, held)
    if advice.target == NO_TARGET:
        return Way(NO_WAY, False, NO_WAY, NO_TARGET)
    straight, turned, now, first = 0, False, cell, advice.direction
    for _ in range(advice.path_length):
        step = solution.advise(now, held)
        turned = turned or step.direction != first
        straight += not turned
        now = step.next_cell
    after = NO_TARGET
    if advice.target != GEM_TARGET:
        after = solution.advise(now, held | 1 << advice.target).target
    return Way(now, wall_on_line(maze, cell, now), straight, after)


def wall_on_line(maze: Maze, start: int, end: int) -> bool:
    """Whether the straight line between the centres of two cells runs through the inside of a wall."""
    side = maze.side
    x0, y0, x1, y1 = start % side, start // side, end % side, end // side
    dx, dy = x1 - x0, y1 - y0
    for x in range(min(x0, x1), max(x0, x1) + 1):
        for y in range(min(y0, y1), max(y0, y1) + 1):
            # the distance of the cell's centre from the line, against that of a corner: all in whole numbers
            passes = 2 * abs(dx * (y - y0) - dy * (x - x0)) < abs(dx) + abs(dy)
            if passes and maze.walls[y * side + x]:
                return True
    return False
