"""Edits of heist states: pure functions from state to state, checked for what the game can hold."""

import dataclasses

from environments.heist.layout import COLOURS, ENTITIES, GEM, KEY, LOCK, Cell, HeistPart, read_layout
from environments.state import State

_KINDS = {"key": KEY, "lock": LOCK}


def copy_state(state: State) -> State:
    """A copy that can be edited without touching the original."""
    return dataclasses.replace(state, fields=dict(state.fields), entities=state.entities.copy(), grid=state.grid.copy())


def find_entity(state: State, name: str) -> int:
    """Row of a named entity in `state.entities`.

    Raises:
        ValueError: the name is not in `ENTITIES`, or the entity is not (or no longer) in this level.
    """
    HeistPart.from_tail(state.tail)
    if name not in ENTITIES:
        raise ValueError(f"{name!r} is no entity of heist: choose one of {', '.join(ENTITIES)}")
    if name == "player":
        return 0
    for row, (kind, theme, gone) in enumerate(state.entities[["type", "image_theme", "will_erase"]].tolist()):
        if gone:
            continue
        if name == "gem" and kind == GEM:
            return row
        if name != "gem":
            colour, what = name.split("_")
            if kind == _KINDS[what] and theme == COLOURS.index(colour):
                return row
    raise ValueError(f"this level has no {name} (now): choose another entity or an earlier state")


def move_entity(state: State, name: str, cell: Cell) -> State:
    """The same state with one entity moved to the centre of a free cell.

    Args:
        state: of heist.
        name: one of `ENTITIES`.
        cell: (x, y), y upwards.

    Raises:
        ValueError: the entity is not there, or the cell is a wall, outside, or taken.
    """
    row = find_entity(state, name)
    maze = read_layout(state).maze
    x, y = cell
    if not (0 <= x < maze.side and 0 <= y < maze.side):
        raise ValueError(f"cell {cell} lies outside the world of {maze.side} x {maze.side} cells")
    index = y * maze.side + x
    if maze.walls[index]:
        raise ValueError(f"cell {cell} is a wall: {name} can only be put into a free cell")
    taken = {where for _, where in (*maze.keys, *maze.locks)} | {maze.gem}
    if name != "player" and index in taken:
        raise ValueError(f"cell {cell} already holds another entity: {name} can only be put into an empty cell")
    edited = copy_state(state)
    edited.entities["x"][row] = x + 0.5
    edited.entities["y"][row] = y + 0.5
    return edited
