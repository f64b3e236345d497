"""Every scenario builder at work on one level: what the contact sheet shows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from environments import State
from environments.heist import (
    COLOURS,
    ENTITIES,
    add_entity,
    choice_maze,
    close_walls,
    corner_maze,
    corner_scenes,
    cross_maze,
    deconfound,
    draw_maze,
    empty_room,
    give_key,
    keys_and_locks,
    maze_bounds,
    mirror,
    move_entity,
    occupied_cells,
    open_walls,
    pickup_order,
    place_player,
    recolour,
    recolour_entity,
    remove_entity,
    reorder,
    replaced_entities,
    rotate,
    scatter_player,
    shift_lock,
    swap_entities,
    swap_target,
    t_maze,
    take_key,
    walk_square,
)
from environments.heist.layout import Cell
from environments.heist.random_mazes import free_cells, open_ways
from environments.state import WALL


class Exhibit(NamedTuple):
    """One scenario.

    Attributes:
        group: heading of its row.
        title: what was done.
        state: what came of it.
    """

    group: str
    title: str
    state: State


def gallery(state: State, seed: int = 0) -> list[Exhibit]:
    """All builders, at least once each, from one level with three keys.

    Args:
        state: the beginning of a level of heist, easy or hard.
        seed: of the random builders.

    Raises:
        ValueError: another level.
    """
    keys = ["blue_key", "green_key", "red_key", "gem"]
    if pickup_order(state) != keys:
        raise ValueError(
            f"the gallery edits a level whose solution fetches {', '.join(keys)}; level {state.level_seed} has "
            f"{', '.join(pickup_order(state)) or 'no solution'}: choose another level"
        )
    return [
        Exhibit(group, title, made)
        for group, row in (
            ("entities", _entities(state)),
            ("colours, keys", _colours(state)),
            ("walls", _walls(state)),
            ("drawn mazes", _drawn(state)),
            ("round a corner", _corners(state)),
            ("detours", _detours(state)),
            ("a walk", _walk(state)),
            ("another target", _targets(state)),
            ("choices", _choices(state, seed)),
            ("keys and locks", _keys_and_locks(state, seed)),
            ("a lock elsewhere", _shifted(state, seed)),
            ("one place", _replaced(state, seed)),
            ("deconfounded", _deconfounded(state, seed)),
        )
        for title, made in row
    ]


Row = Iterator[tuple[str, State]]


def _entities(state: State) -> Row:
    cells = _free_cells(state)
    near, far = cells[0], cells[-1]
    moved = (move_entity(state, "blue_key", cell) for cell in reversed(cells))
    yield "a natural level", state
    yield "blue key moved", next(made for made in moved if pickup_order(made))
    yield "blue key removed", remove_entity(state, "blue_key")
    yield "blue lock removed", remove_entity(state, "blue_lock")
    yield "a second red lock", add_entity(state, "red_lock", near)
    yield "gem and blue key", swap_entities(state, "blue_key", "gem")
    yield "player placed", place_player(state, far)
    yield "player scattered", scatter_player(state, np.random.default_rng(1))


def _colours(state: State) -> Row:
    yield "blue and red", recolour(state, {"blue": "red", "red": "blue"})
    yield "order: red first", reorder(state, ["red", "blue", "green"])
    yield "one lock recoloured", recolour_entity(state, "red_lock", "blue")
    yield "blue held", give_key(state, "blue")
    held = give_key(give_key(state, "blue"), "green")
    yield "blue, green held", held
    yield "green taken again", take_key(held, "green")
    yield "put back elsewhere", add_entity(take_key(held, "green"), "green_key", _free_cells(state)[0])
    yield "all held", give_key(held, "red")


def _walls(state: State) -> Row:
    left, bottom, right, top = maze_bounds(state)
    inside = [(x, y) for x in range(left, right) for y in range(bottom, top)]
    yield "one wall open", open_walls(state, [next((x, y) for x, y in inside if state.grid[y, x] == WALL)])
    yield "all walls open", open_walls(state, inside)
    floor = state.grid != WALL
    dead_ends = [cell for cell in _free_cells(state) if open_ways(floor, cell) == 1]
    yield "dead ends closed", close_walls(state, dead_ends)
    yield "mirrored", mirror(state)
    for turns in (1, 2, 3):
        yield f"turned {90 * turns}°", rotate(state, turns)
    yield "empty room", empty_room(state, size=7)


def _drawn(state: State) -> Row:
    yield "T: blue, red", t_maze(state, "blue_key", "red_key")
    yield "T: red, blue", t_maze(state, "red_key", "blue_key")
    yield "T: gem, green", t_maze(state, "gem", "green_key", stem=4)
    keys = {"left": "blue_key", "up": "green_key", "right": "red_key"}
    yield "cross: three keys", cross_maze(state, keys, length=4)
    yield "cross: four arms", cross_maze(state, {**keys, "down": "gem"})
    yield "cross: turned", cross_maze(state, {"up": "blue_key", "right": "green_key", "down": "red_key", "left": "gem"})
    yield "drawn: a ring", draw_maze(state, ["b...r", ".###.", "..P..", ".###.", ".B*R."])
    yield "drawn: in a row", draw_maze(state, ["Prb", "##R", "*B."])


def _corners(state: State) -> Row:
    for mirrored in (False, True):
        for turns in range(4):
            title = ", ".join(["mirrored"] * mirrored + [f"turned {90 * turns}°"] * (turns > 0))
            yield title or "right, then up", corner_maze(state, "blue_key", quarter_turns=turns, mirrored=mirrored)


def _detours(state: State) -> Row:
    side = state.grid.shape[0]
    scenes = corner_scenes(state, "blue_key", (side // 2, side // 2), blocked=3)
    for number, scene in enumerate(scenes[::2]):
        across, up = ("right", "left", "left", "right")[number // 2], ("up", "down")[number // 4]
        yield f"{across}, {up}" if number % 2 == 0 else f"{up}, {across}", scene


def _walk(state: State) -> Row:
    side = state.grid.shape[0]
    start = (side // 2 - 3, side // 2 - 3)
    room = empty_room(state, {"gem": start}, player=(side // 2, side // 2))
    for step, walked in enumerate(walk_square(room, "gem", start, side=6, steps=8)):
        yield f"place {step + 1} of 8", walked


def _targets(state: State) -> Row:
    for name in ("blue_key", "green_key", "red_key", "gem"):
        yield name.replace("_", " "), swap_target(state, name)
    maze = corner_maze(state, "blue_key")
    for name in ("blue_key", "green_key", "red_key", "gem"):
        yield f"corner: {name.replace('_', ' ')}", swap_target(maze, name, new_colours=True)


def _choices(state: State, seed: int) -> Row:
    asked = [
        ("blue_key", "red_key"),
        ("blue_key", "red_key"),
        ("green_key", "red_key"),
        ("blue_key", "green_key"),
        ("blue_key", "gem"),
        ("red_key", "gem"),
        ("blue_key", "green_key", "red_key"),
        ("blue_key", "green_key", "red_key", "gem"),
    ]
    for number, entities in enumerate(asked):
        rng = np.random.default_rng([seed, number])
        title = ", ".join(name.removesuffix("_key") for name in entities)
        yield title, choice_maze(state, rng, entities=entities)


def _keys_and_locks(state: State, seed: int) -> Row:
    asked = [(3, 1), (3, 2), (2, 1), (3, 0), (1, 2), (1, 3), (2, 4), (0, 2)]
    for number, (keys, locks) in enumerate(asked):
        rng = np.random.default_rng([seed, number])
        colours = [COLOURS[index] for index in rng.permutation(len(COLOURS))]
        held = colours[:1] if keys == 0 else []
        usable = held or colours[:keys]
        made = keys_and_locks(
            state, rng, keys=colours[:keys], locks=[usable[n % len(usable)] for n in range(locks)], held=held
        )
        title = f"{keys} key{'s' * (keys != 1)}, {locks} lock{'s' * (locks != 1)}"
        yield title + ", 1 held" * len(held), made


def _shifted(state: State, seed: int) -> Row:
    for number, name in enumerate(COLOURS):
        made = shift_lock(state, np.random.default_rng([seed, number]), [f"{name}_key"])
        yield f"off the way to {name}", made


def _replaced(state: State, seed: int) -> Row:
    names = [name for name in ENTITIES if name != "player"]
    scenes, _ = replaced_entities(state, np.random.default_rng(seed), names, others=2)
    for name, scene in zip([*names, "nothing"], scenes, strict=True):
        yield name.replace("_", " "), scene


def _deconfounded(state: State, seed: int) -> Row:
    for number in range(8):
        made = deconfound(state, np.random.default_rng([seed, number]))
        yield f"target {pickup_order(made)[0].replace('_', ' ')}", made


def _free_cells(state: State) -> list[Cell]:
    """Free and empty cells, from the lower left on."""
    taken = occupied_cells(state)
    return [cell for cell in free_cells(state.grid != WALL) if cell not in taken]
