"""Places in the middle of a level: as if somebody had solved a part of it and then wandered about."""

import numpy as np

from environments.heist.layout import KEY, LOCK, HeistPart, read_layout
from environments.heist.oracle import plan
from environments.heist.random_mazes import free_cells, walks_from
from environments.heist.scenarios import copy_state, put_at
from environments.state import WALL, State


def scatter_player(state: State, rng: np.random.Generator) -> State:
    """The same level at a random stage of its shortest solution, the player at rest in a random cell open to it then.

    A number of moves is drawn uniformly and taken along the solution, picking up keys and opening locks; the cell is
    drawn uniformly among those reachable from there without a further pickup. So every stage of long levels is met as
    often as it lasts, in as many places as there are, where play itself would only show its own few paths.

    Args:
        state: of heist.
        rng: draws the stage and the cell.

    Returns:
        An edited copy; an unsolvable level comes back as it was.
    """
    layout = read_layout(state)
    maze, cell, held = layout.maze, layout.player, layout.held
    solution = plan(maze, held)
    keys = {where: colour for colour, where in maze.keys}
    closed = {where for _, where in maze.locks}
    moves = solution.advise(cell, held).total_length
    for _ in range(int(rng.integers(moves)) if moves > 0 else 0):
        advice = solution.advise(cell, held)
        if advice.direction < 0:
            break
        cell = advice.next_cell
        held |= 1 << keys[cell] if cell in keys else 0
        closed.discard(cell)
    side = maze.side
    barred = closed | {where for where, colour in keys.items() if not held >> colour & 1} | {maze.gem}
    floor = {(x, y) for x, y in free_cells(state.grid != WALL) if y * side + x not in barred}
    around = sorted(y * side + x for x, y in walks_from(floor, (cell % side, cell // side)).distance)
    return _at_stage(state, held, closed, int(rng.choice(around)), side)


def _at_stage(state: State, held: int, closed: set[int], cell: int, side: int) -> State:
    edited = copy_state(state)
    part = HeistPart.from_tail(state.tail)
    part.has_keys = [bool(held >> colour & 1) for colour in range(len(part.has_keys))]
    edited.tail = part.to_tail()
    kinds, colours = edited.entities["type"], edited.entities["image_theme"]
    places = edited.entities["y"].astype(int) * side + edited.entities["x"].astype(int)
    taken = (kinds == KEY) & (held >> colours.clip(0, 30) & 1 > 0)
    opened = (kinds == LOCK) & ~np.isin(places, list(closed))
    edited.entities = edited.entities[~(taken | opened)]
    put_at(edited, 0, cell % side + 0.5, cell // side + 0.5)
    return edited
