"""Whether a scenario can be played to its end, and if not, why."""

from environments.heist.layout import COLOURS, KEY, LOCK, HeistPart, read_layout
from environments.heist.oracle import NO_TARGET, advise
from environments.heist.scenarios import occupied_cells
from environments.state import WALL, State


def check_playable(state: State) -> State:
    """The state itself, if the gem can be reached from it; the last link of a chain of edits.

    Raises:
        ValueError: with the first reason that holds: something inside a wall or outside, two things in one cell, a
            colour that the key ring has no place for, no gem, a lock whose key is neither in the maze nor held, or a
            gem that no path leads to.
    """
    part = HeistPart.from_tail(state.tail)
    height, width = state.grid.shape
    cells = occupied_cells(state)
    for (x, y), names in cells.items():
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"{names[0]} lies outside the world, at {(x, y)}: move it into a free cell")
        if state.grid[y, x] == WALL:
            raise ValueError(f"{names[0]} lies inside a wall, at {(x, y)}: move it, or open the wall")
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} share cell {(x, y)}: move one of them")
    coloured = [
        (theme, kind)
        for kind, theme, gone in state.entities[["type", "image_theme", "will_erase"]].tolist()
        if kind in (KEY, LOCK) and not gone
    ]
    largest = max((theme for theme, _ in coloured), default=-1)
    if largest >= len(part.has_keys):
        raise ValueError(
            f"the key ring holds {len(part.has_keys)} colours and has no place for {COLOURS[largest]}, where procgen "
            "would read beyond its end: lengthen has_keys, or add keys and locks with new_colours=True"
        )
    layout = read_layout(state)
    if layout.maze.gem < 0:
        raise ValueError("there is no gem, so nothing ends the level: add one")
    found = {theme for theme, kind in coloured if kind == KEY} | {c for c, held in enumerate(part.has_keys) if held}
    for theme, cell in layout.maze.locks:
        if theme not in found:
            where = (cell % width, cell // width)
            colour = COLOURS[theme]
            raise ValueError(
                f"{colour}_lock at {where} has no {colour} key, neither in the maze nor held: add or give one, "
                "or remove the lock"
            )
    if advise(layout).target == NO_TARGET:
        raise ValueError("no path leads to the gem: open a wall, or put a key before its own lock")
    return state
