"""Which part of a frame shows the maze: the rest of heist's world is solid wall and says nothing."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from environments.state import WALL, State


def maze_bounds(state: State) -> tuple[int, int, int, int]:
    """Cells (left, bottom, right, top) of the maze, y upwards, right and top exclusive.

    Mazes have open corners and all around them is wall, so the bounds are those of the cells that are not wall.

    Raises:
        ValueError: the state shows no open cell.
    """
    open_y, open_x = np.nonzero(state.grid != WALL)
    if len(open_x) == 0:
        raise ValueError("this state has no open cell, so no maze: pass a state of heist")
    return int(open_x.min()), int(open_y.min()), int(open_x.max()) + 1, int(open_y.max()) + 1


def inside_maze(states: Sequence[State], height: int, width: int) -> Bool[np.ndarray, "N H W"]:
    """Positions of a map laid over the whole frame whose centre shows the maze; row 0 is the frame's top.

    Modes whose frame shows the whole world only (easy, hard): in memory mode the view follows the player.
    """
    inside = np.zeros((len(states), height, width), dtype=bool)
    for row, state in enumerate(states):
        side = state.grid.shape[0]
        left, bottom, right, top = maze_bounds(state)
        xs = (np.arange(width) + 0.5) * side / width
        ys = side - (np.arange(height) + 0.5) * side / height
        inside[row] = ((ys >= bottom) & (ys < top))[:, None] & ((xs >= left) & (xs < right))[None]
    return inside
