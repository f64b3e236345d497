"""Mazes built into a real state: its world, theme and random generators stay, walls and entities are written anew."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool

from environments.heist.entities import check_name, colour_index, join_rows, new_entity, ring_icon
from environments.heist.layout import Cell, HeistPart
from environments.heist.oracle import DIRECTIONS
from environments.heist.playable import check_playable
from environments.heist.scenarios import copy_state, put_at
from environments.state import SPACE, WALL, State

SYMBOLS: Final = {
    "b": "blue_key", "g": "green_key", "r": "red_key", "B": "blue_lock", "G": "green_lock", "R": "red_lock",
    "*": "gem", "P": "player",
}  # fmt: skip
"""What a drawing's characters stand for; beside these `#` is a wall, and a full stop or a space is floor."""

SCATTER: Final = 0.125
"""Cells by which the game itself moves keys and the gem off their cell's centre at most, along each axis."""


def write_maze(
    state: State,
    floor: Bool[np.ndarray, "H W"],
    entities: Sequence[tuple[str, Cell]],
    player: Cell,
    *,
    held: Collection[str] = (),
    rng: np.random.Generator | None = None,
) -> State:
    """Other walls and entities in the world of a state, the player at rest. Not checked for a solution.

    Args:
        state: of heist; its level seed, background and random generators stay, and so does the time already played.
        floor: which cells are free, row 0 at the bottom.
        entities: (name, cell) of keys, locks and the gem; a name may come more than once.
        player: the player's cell.
        held: colours of held keys.
        rng: lets keys and the gem lie up to `SCATTER` off their cells' centres, as in natural levels; None puts them
            into the centres.

    Raises:
        ValueError: something inside a wall or outside, two things in one cell, an unknown name, or another shape of
            world.
    """
    part = HeistPart.from_tail(state.tail)
    if floor.shape != state.grid.shape:
        raise ValueError(f"floor of {floor.shape} cells for a world of {state.grid.shape}: pass one of the same shape")
    taken: dict[Cell, str] = {}
    for name, cell in (("player", player), *entities):
        x, y = cell
        if not (0 <= x < floor.shape[1] and 0 <= y < floor.shape[0]) or not floor[y, x]:
            raise ValueError(f"{name} would lie inside a wall or outside, at {(x, y)}: choose a free cell")
        if (x, y) in taken:
            raise ValueError(f"{taken[x, y]} and {name} would share cell {(x, y)}: choose another for one of them")
        taken[x, y] = name
    rows = [new_entity(name, cell) for name, cell in entities]
    for row, (name, _) in zip(rows, entities, strict=True):
        if rng is not None and not name.endswith("lock"):
            row["x"] += rng.uniform(-SCATTER, SCATTER)
            row["y"] += rng.uniform(-SCATTER, SCATTER)
    themes = {colour_index(colour) for colour in held}
    used = {colour_index(name.split("_")[0]) for name, _ in entities if name != "gem"}
    colours = max(themes | used, default=-1) + 1
    edited = copy_state(state)
    edited.grid[:] = np.where(floor, SPACE, WALL)
    edited.entities = join_rows(state.entities[:1], *rows, *(ring_icon(colour) for colour in range(colours)))
    part.num_keys, part.has_keys = colours, [colour in themes for colour in range(colours)]
    edited.tail = part.to_tail()
    put_at(edited, 0, player[0] + 0.5, player[1] + 0.5)
    return edited


def draw_maze(state: State, rows: Sequence[str], *, held: Collection[str] = ()) -> State:
    """A maze from a drawing, in the middle of the world. Not checked for a solution.

    Args:
        state: of heist; see `write_maze` for what of it stays.
        rows: lines of characters, the top one first, see `SYMBOLS`: `["P.b", "##B", "*.."]`. All around is wall.
        held: colours of held keys.

    Raises:
        ValueError: lines of different lengths, a drawing larger than the world, an unknown character, or not exactly
            one player.
    """
    side = state.grid.shape[0]
    width = len(rows[0]) if rows else 0
    if not rows or any(len(row) != width for row in rows):
        raise ValueError("a drawing needs lines of one length, at least one: fill the shorter ones up with #")
    if max(width, len(rows)) > side:
        raise ValueError(
            f"a drawing of {width} x {len(rows)} cells does not fit this world of {side} x {side}: "
            "make it smaller, or begin from a state of another distribution mode"
        )
    left, bottom = (side - width) // 2, (side - len(rows)) // 2
    floor = np.zeros(state.grid.shape, dtype=bool)
    entities: list[tuple[str, Cell]] = []
    for y, row in enumerate(reversed(rows), start=bottom):
        for x, character in enumerate(row, start=left):
            if character not in SYMBOLS and character not in "#. ":
                raise ValueError(f"{character!r} means nothing in a drawing: write # . {' '.join(SYMBOLS)}")
            floor[y, x] = character != "#"
            if character in SYMBOLS:
                entities.append((SYMBOLS[character], (x, y)))
    players = [cell for name, cell in entities if name == "player"]
    if len(players) != 1:
        raise ValueError(f"a drawing needs one player P, this one has {len(players)}")
    return write_maze(state, floor, [pair for pair in entities if pair[0] != "player"], players[0], held=held)


def empty_room(
    state: State,
    entities: Mapping[str, Cell] | None = None,
    *,
    player: Cell | None = None,
    size: int | None = None,
    held: Collection[str] = (),
) -> State:
    """A square without walls, in the middle of the world, with what is put into it.

    Args:
        state: of heist.
        entities: cells of the world by name; by default the gem alone, in the upper right corner.
        player: its cell; by default the middle.
        size: side of the room in cells; the whole world by default.
        held: colours of held keys.

    Raises:
        ValueError: a size that the world does not have, a cell outside the room or taken, or a room that cannot be
            played to its end.
    """
    side = state.grid.shape[0]
    size = side if size is None else size
    if not 2 <= size <= side:
        raise ValueError(f"a room of {size} cells a side does not fit: choose 2 to {side}")
    start = (side - size) // 2
    floor = np.zeros(state.grid.shape, dtype=bool)
    floor[start : start + size, start : start + size] = True
    if entities is None:
        entities = {"gem": (start + size - 1, start + size - 1)}
    middle = (start + size // 2, start + size // 2)
    room = write_maze(state, floor, list(entities.items()), middle if player is None else player, held=held)
    return check_playable(room)


def cross_maze(state: State, arms: Mapping[str, str], *, length: int = 3) -> State:
    """Corridors from the player in the middle, an entity at the end of each.

    Where no arm has the gem, it waits at the end of a further arm behind the locks of all keys, so that the level can
    be played to its end and every key is wanted.

    Args:
        state: of heist.
        arms: name of a key or the gem by direction (`left`, `down`, `up`, `right`).
        length: moves from the player to each entity.

    Raises:
        ValueError: a direction or a name that does not exist or comes twice, no arm left for the gem, or arms that are
            too long for the world, or too short for the locks.
    """
    side = state.grid.shape[0]
    if unknown := [arm for arm in arms if arm not in DIRECTIONS]:
        raise ValueError(f"{unknown[0]!r} is no direction of an arm: choose among {', '.join(DIRECTIONS)}")
    along = {direction: _ended(name, length) for direction, name in arms.items()}
    out = _way_out(list(arms.values()))
    if out:
        free = [direction for direction in ("down", "right", "left", "up") if direction not in arms]
        if not free:
            raise ValueError("no arm is left for the gem: leave one direction out, or put the gem at the end of one")
        along[free[0]] = out.rjust(length, ".")
    reach = max(map(len, along.values()), default=0)
    if 2 * reach + 1 > side or reach < 1:
        raise ValueError(f"arms of {reach} cells do not fit the world of {side} cells: choose 1 to {(side - 1) // 2}")
    drawing = [["#"] * (2 * reach + 1) for _ in range(2 * reach + 1)]
    drawing[reach][reach] = "P"
    steps = {"left": (-1, 0), "down": (0, 1), "up": (0, -1), "right": (1, 0)}  # rows of a drawing run downwards
    for direction, what in along.items():
        dx, dy = steps[direction]
        for distance, character in enumerate(what, start=1):
            drawing[reach + dy * distance][reach + dx * distance] = character
    return check_playable(draw_maze(state, ["".join(row) for row in drawing]))


def t_maze(state: State, left: str, right: str, *, stem: int = 3, arm: int = 3) -> State:
    """The player at the foot of a stem, a key or the gem at the end of each arm; without the gem on an arm, it waits
    at the player's back behind the locks of both keys.

    Args:
        state: of heist.
        left: name of a key or the gem.
        right: another.
        stem: moves from the player to the fork.
        arm: moves from the fork to each entity.

    Raises:
        ValueError: a name that is neither a key nor the gem or comes twice, or a maze too large for the world.
    """
    out = _way_out([left, right])
    top = _ended(left, arm)[::-1] + "." + _ended(right, arm)
    below = "." * (stem - 1) + "P" + out
    if stem < 1:
        raise ValueError(f"a stem of {stem} cells leaves the player no way to go: choose at least 1")
    margin = "#" * arm
    return check_playable(draw_maze(state, [top, *(margin + character + margin for character in below)]))


def corner_maze(
    state: State,
    entity: str,
    *,
    quarter_turns: int = 0,
    mirrored: bool = False,
    legs: tuple[int, int] = (3, 3),
    aside: bool = False,
    blocked: int | None = None,
    player: Cell | None = None,
) -> State:
    """A key or the gem round a corner: the player walks right, then up, and is there.

    Behind a key's owner waits the gem, behind the lock of that key.

    Args:
        state: of heist.
        entity: what is round the corner.
        quarter_turns: counter-clockwise turns of the whole picture, 0 to 3.
        mirrored: exchange left and right before turning; with the turns this gives all eight pictures of a corner.
        legs: moves from the player to the corner, and from there to the entity.
        aside: gem and lock lie below the player, not at its back.
        blocked: opens the other way round too, up and then right, but for the cell so many moves from the player.
        player: its cell; without it the maze stands in the middle of the world.

    Raises:
        ValueError: a name that is neither a key nor the gem, legs that are too short or too long for the world (for
            the player's cell), or a block that is not on the other way.
    """
    first, second = legs
    if min(legs) < 1:
        raise ValueError(f"legs {legs} leave no corner to go round: choose at least 1 each")
    if blocked is not None and not 1 <= blocked < first + second:
        raise ValueError(f"blocked {blocked} is not on the way: choose 1 to {first + second - 1}, or None")
    drawn: dict[Cell, str] = {}
    if blocked is not None:
        other = [(0, y) for y in range(1, second + 1)] + [(x, second) for x in range(1, first)]
        drawn = dict.fromkeys(other, ".") | {other[blocked - 1]: "#"}
    drawn |= {(x, 0): "." for x in range(1, first + 1)} | {(first, y): "." for y in range(1, second)}
    drawn |= {(0, 0): "P", (first, second): _symbol(entity)}
    for distance, character in enumerate(_way_out([entity]), start=1):
        drawn[(0, -distance) if aside else (-distance, 0)] = character
    if mirrored:
        drawn = {(-x, y): character for (x, y), character in drawn.items()}
    for _ in range(quarter_turns % 4):
        drawn = {(-y, x): character for (x, y), character in drawn.items()}
    left, bottom, right, top = (of(cells) for of in (min, max) for cells in zip(*drawn, strict=True))
    if player is not None:
        side = state.grid.shape[0]
        if min(player[0] + left, player[1] + bottom) < 0 or max(player[0] + right, player[1] + top) >= side:
            raise ValueError(f"the corner leaves the world, the player at {player}: choose a cell nearer its middle")
        left, bottom, right, top = -player[0], -player[1], side - 1 - player[0], side - 1 - player[1]
    lines = range(top, bottom - 1, -1)
    rows = ["".join(drawn.get((x, y), "#") for x in range(left, right + 1)) for y in lines]
    return check_playable(draw_maze(state, rows))


def _symbol(name: str) -> str:
    check_name(name)
    if name == "player" or name.endswith("lock"):
        raise ValueError(f"{name} is nothing to fetch: name a key or the gem")
    return next(character for character, known in SYMBOLS.items() if known == name)


def _ended(name: str, length: int) -> str:
    """A corridor that ends in an entity."""
    if length < 1:
        raise ValueError(f"an arm of {length} cells has no room for the {name}: choose at least 1")
    return _symbol(name).rjust(length, ".")


def _way_out(names: Sequence[str]) -> str:
    """Locks of all keys and then the gem; nothing where the gem is among the names."""
    symbols = [_symbol(name) for name in names]
    if len(set(symbols)) < len(symbols):
        raise ValueError(f"{', '.join(names)}: an entity can lie in one place only, name different ones")
    return "" if "*" in symbols else "".join(symbol.upper() for symbol in symbols) + "*"
