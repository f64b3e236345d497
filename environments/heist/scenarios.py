"""Primitive edits of heist states: pure functions from state to state that compose.

Each refuses what the game cannot hold (a key inside a wall, two things in a cell, a colour that the key ring has no
place for). Whether a level can still be solved is asked once, at the end, by `check_playable`: edits on the way there,
and experiments that take a key away on purpose, need not be.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from environments.heist.entities import check_name, colour_index, entity_name, join_rows, new_entity, ring_icon
from environments.heist.layout import COLOURS, GEM, KEY, LOCK, Cell, HeistPart
from environments.state import SPACE, WALL, State


def copy_state(state: State) -> State:
    """A copy that can be edited without touching the original."""
    return dataclasses.replace(state, fields=dict(state.fields), entities=state.entities.copy(), grid=state.grid.copy())


def put_at(state: State, row: int, x: float, y: float) -> None:
    """Move the entity of a row, in place; a moved player stands still, and in memory mode the view follows it."""
    state.entities["x"][row], state.entities["y"][row] = x, y
    if row != 0:
        return
    state.entities["vx"][row] = state.entities["vy"][row] = 0
    if state.fields["center_agent"]:
        unit, half = float(state.fields["unit"]), float(state.fields["view_dim"]) / 2
        x, y = np.float32(x).item(), np.float32(y).item()  # procgen computes with what it has stored
        state.fields.update(center_x=x, center_y=y, x_off=unit * (x - half), y_off=unit * (y - half))


def occupied_cells(state: State) -> dict[Cell, list[str]]:
    """Names of the keys, locks, gem and player in each cell that holds any."""
    HeistPart.from_tail(state.tail)
    found: dict[Cell, list[str]] = {(int(state.entities["x"][0]), int(state.entities["y"][0])): ["player"]}
    for x, y, kind, theme, gone in state.entities[["x", "y", "type", "image_theme", "will_erase"]].tolist():
        if kind in (KEY, LOCK, GEM) and not gone:
            found.setdefault((int(x), int(y)), []).append(entity_name(kind, theme))
    return found


def find_entity(state: State, name: str) -> int:
    """Row of a named entity in `state.entities`; the first of several of one name.

    Raises:
        ValueError: the name is not in `ENTITIES`, or the entity is not (or no longer) in this level.
    """
    HeistPart.from_tail(state.tail)
    check_name(name)
    if name == "player":
        return 0
    for row, (kind, theme, gone) in enumerate(state.entities[["type", "image_theme", "will_erase"]].tolist()):
        if kind in (KEY, LOCK, GEM) and not gone and entity_name(kind, theme) == name:
            return row
    raise ValueError(f"this level has no {name} (now): choose another entity or an earlier state")


def move_entity(state: State, name: str, cell: Cell) -> State:
    """The same state with one entity in the centre of a free cell; a moved player stands still.

    Args:
        state: of heist.
        name: one of `ENTITIES`.
        cell: (x, y), y upwards.

    Raises:
        ValueError: the entity is not there, or the cell is a wall, outside, or taken.
    """
    row = find_entity(state, name)
    was = (int(state.entities["x"][row]), int(state.entities["y"][row]))
    if was != tuple(cell):
        _check_free(state, name, cell)
    edited = copy_state(state)
    put_at(edited, row, cell[0] + 0.5, cell[1] + 0.5)
    return edited


def place_player(state: State, cell: Cell) -> State:
    """The player at rest in the centre of a free cell; raises as `move_entity`."""
    return move_entity(state, "player", cell)


def swap_entities(state: State, one: str, other: str) -> State:
    """Two entities in each other's places; a lock comes to stand in its cell's centre, as locks do.

    Raises:
        ValueError: one of them is not there.
    """
    rows = find_entity(state, one), find_entity(state, other)
    places = [(float(state.entities["x"][row]), float(state.entities["y"][row])) for row in rows]
    edited = copy_state(state)
    for row, (x, y) in zip(rows, reversed(places), strict=True):
        lock = state.entities["type"][row] == LOCK
        put_at(edited, row, *((int(x) + 0.5, int(y) + 0.5) if lock else (x, y)))
    return edited


def remove_entity(state: State, name: str) -> State:
    """Without one key, lock or the gem; a lock may be left without its key, which `check_playable` will tell.

    Raises:
        ValueError: it is not there, or it is the player.
    """
    if name == "player":
        raise ValueError("a level without its player cannot be shown: move the player instead")
    edited = copy_state(state)
    edited.entities = np.delete(edited.entities, find_entity(state, name))
    return edited


def add_entity(state: State, name: str, cell: Cell, *, new_colours: bool = False) -> State:
    """With one more key or lock, or the gem, in the centre of a free cell.

    Args:
        state: of heist.
        name: one of `ENTITIES` but the player.
        cell: (x, y), y upwards.
        new_colours: lengthen the key ring if it has no place for the colour (rings hold blue; blue and green; or all).

    Raises:
        ValueError: the cell is a wall, outside or taken, there is a gem already, or the level's ring has no place
            for the colour and `new_colours` was not given.
    """
    row = new_entity(name, cell)
    _check_free(state, name, cell)
    if name == "gem" and any("gem" in names for names in occupied_cells(state).values()):
        raise ValueError("this level has a gem already: move that one")
    edited = state if name == "gem" else _with_ring_for(state, int(row["image_theme"][0]), new_colours)
    edited = copy_state(edited)
    edited.entities = join_rows(edited.entities, row)
    return edited


def recolour(state: State, colours: Mapping[str, str], *, new_colours: bool = False) -> State:
    """Keys, locks and held keys in other colours, all at once: `{"blue": "red", "red": "blue"}` exchanges two.

    A permutation of the colours also reorders them along the solution, whose path stays as it was.

    Args:
        state: of heist.
        colours: new colour by old; colours that are not named stay.
        new_colours: lengthen the key ring if it has no place for a colour.

    Raises:
        ValueError: an unknown colour, one that the ring has no place for, or two that would become one.
    """
    table = list(range(len(COLOURS)))
    for old, new in colours.items():
        table[colour_index(old)] = colour_index(new)
    held = HeistPart.from_tail(state.tail).has_keys
    rows = _coloured(state)
    used = sorted({*state.entities["image_theme"][rows].tolist(), *np.flatnonzero(held).tolist()})
    if len({table[theme] for theme in used}) < len(used):
        named = ", ".join(COLOURS[theme] for theme in used)
        raise ValueError(f"{dict(colours)} would make one colour of two that this level has ({named}): exchange them")
    edited = copy_state(_with_ring_for(state, max((table[theme] for theme in used), default=-1), new_colours))
    edited.entities["image_theme"][rows] = np.take(table, edited.entities["image_theme"][rows])
    part = HeistPart.from_tail(edited.tail)
    now = {table[theme] for theme in np.flatnonzero(held).tolist()}
    part.has_keys = [theme in now for theme in range(len(part.has_keys))]
    edited.tail = part.to_tail()
    return edited


def recolour_entity(state: State, name: str, colour: str, *, new_colours: bool = False) -> State:
    """One key or lock in another colour, all else as it was; arguments and errors as for `recolour`."""
    theme, row = colour_index(colour), find_entity(state, name)
    if name in ("gem", "player"):
        raise ValueError(f"the {name} has no colour: name a key or a lock")
    edited = copy_state(_with_ring_for(state, theme, new_colours))
    edited.entities["image_theme"][row] = theme
    return edited


def give_key(state: State, colour: str, *, new_colours: bool = False) -> State:
    """The player holds the key, as if picked up: none of its colour lies in the maze, its icon shows on the ring.

    Raises:
        ValueError: it is held already, an unknown colour, or one that the ring has no place for.
    """
    theme = colour_index(colour)
    edited = copy_state(_with_ring_for(state, theme, new_colours))
    part = HeistPart.from_tail(edited.tail)
    if part.has_keys[theme]:
        raise ValueError(f"the {colour} key is held already: take it first, or give another")
    part.has_keys[theme] = True
    edited.tail = part.to_tail()
    lying = (edited.entities["type"] == KEY) & (edited.entities["image_theme"] == theme)
    edited.entities = edited.entities[~lying]
    return edited


def take_key(state: State, colour: str) -> State:
    """The player holds the key no longer; `add_entity` puts it back into the maze.

    Raises:
        ValueError: it is not held.
    """
    theme, part = colour_index(colour), HeistPart.from_tail(state.tail)
    if theme >= len(part.has_keys) or not part.has_keys[theme]:
        raise ValueError(f"the {colour} key is not held: there is nothing to take")
    part.has_keys[theme] = False
    edited = copy_state(state)
    edited.tail = part.to_tail()
    return edited


def open_walls(state: State, cells: Iterable[Cell]) -> State:
    """The given cells are floor.

    Raises:
        ValueError: a cell outside the world.
    """
    edited = copy_state(state)
    for x, y in cells:
        _check_inside(state, (x, y))
        edited.grid[y, x] = SPACE
    return edited


def close_walls(state: State, cells: Iterable[Cell]) -> State:
    """The given cells are walls.

    Raises:
        ValueError: a cell outside the world, one that holds something, or one that the player's body reaches into.
    """
    edited = copy_state(state)
    taken = occupied_cells(state)
    px, py, rx, ry = (float(state.entities[field][0]) for field in ("x", "y", "rx", "ry"))
    for x, y in cells:
        _check_inside(state, (x, y))
        if (x, y) in taken:
            raise ValueError(f"cell {(x, y)} holds {taken[x, y][0]}: move it before a wall is closed there")
        if px + rx > x and px - rx < x + 1 and py + ry > y and py - ry < y + 1:
            raise ValueError(f"the player reaches into cell {(x, y)}: place it in a cell's centre before closing walls")
        edited.grid[y, x] = WALL
    return edited


def _coloured(state: State) -> np.ndarray:
    return np.flatnonzero(np.isin(state.entities["type"], (KEY, LOCK)))


def _check_inside(state: State, cell: Cell) -> None:
    height, width = state.grid.shape
    if not (0 <= cell[0] < width and 0 <= cell[1] < height):
        raise ValueError(f"cell {tuple(cell)} lies outside the world of {width} x {height} cells")


def _check_free(state: State, name: str, cell: Cell) -> None:
    _check_inside(state, cell)
    if state.grid[cell[1], cell[0]] == WALL:
        raise ValueError(f"cell {tuple(cell)} is a wall: {name} can only be put into a free cell")
    if taken := occupied_cells(state).get((cell[0], cell[1])):
        raise ValueError(f"cell {tuple(cell)} already holds {taken[0]}: {name} can only be put into an empty cell")


def _with_ring_for(state: State, theme: int, new_colours: bool) -> State:
    """The state itself, or a copy whose key ring is long enough: procgen reads `has_keys[theme]` unchecked."""
    part = HeistPart.from_tail(state.tail)
    count = len(part.has_keys)
    if theme < count:
        return state
    if not new_colours:
        has = f"only {' and '.join(COLOURS[:count])}" if count else "no keys"
        raise ValueError(
            f"the key ring of this level has no place for a {COLOURS[theme]} key ({has}): "
            "take a level with more colours, or lengthen the ring with new_colours=True"
        )
    edited = copy_state(state)
    edited.entities = join_rows(edited.entities, *(ring_icon(added) for added in range(count, theme + 1)))
    part.num_keys = theme + 1
    part.has_keys += [False] * (theme + 1 - count)
    edited.tail = part.to_tail()
    return edited
