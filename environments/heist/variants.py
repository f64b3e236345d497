"""Variants of one level that differ in a single respect: turned, mirrored, reordered, another target, a walk."""

from collections.abc import Sequence

import numpy as np

from environments.heist.entities import colour_index
from environments.heist.layout import ENTITIES, KEY_ON_RING, Cell, read_layout
from environments.heist.oracle import GEM_TARGET, NO_TARGET, plan
from environments.heist.scenarios import copy_state, find_entity, occupied_cells, put_at, recolour, swap_entities
from environments.state import WALL, State


def rotate(state: State, quarter_turns: int = 1) -> State:
    """The whole world turned counter-clockwise; pictures of entities stay upright, the player comes to rest."""
    turned = copy_state(state)
    for _ in range(quarter_turns % 4):
        side = turned.grid.shape[0]
        # Rows run upwards, so that turning the picture one way is turning the array the other way.
        turned.grid = np.rot90(turned.grid, -1).copy()
        inside = turned.entities["type"] != KEY_ON_RING
        x, y = turned.entities["x"][inside], turned.entities["y"][inside]
        turned.entities["x"][inside], turned.entities["y"][inside] = side - y, x
    put_at(turned, 0, float(turned.entities["x"][0]), float(turned.entities["y"][0]))
    return turned


def mirror(state: State) -> State:
    """Left and right of the whole world exchanged; pictures of entities stay as they are, the player comes to rest."""
    mirrored = copy_state(state)
    mirrored.grid = mirrored.grid[:, ::-1].copy()
    inside = mirrored.entities["type"] != KEY_ON_RING
    mirrored.entities["x"][inside] = mirrored.grid.shape[1] - mirrored.entities["x"][inside]
    put_at(mirrored, 0, float(mirrored.entities["x"][0]), float(mirrored.entities["y"][0]))
    return mirrored


def pickup_order(state: State) -> list[str]:
    """Entities in the order in which the shortest solution fetches them, the gem last; empty without a solution."""
    layout = read_layout(state)
    solution, cell, held = plan(layout.maze, layout.held), layout.player, layout.held
    key_at = {where: 1 << colour for colour, where in layout.maze.keys}
    order: list[str] = []
    while (advice := solution.advise(cell, held)).target != NO_TARGET:
        order.append(ENTITIES[advice.target])
        if advice.target == GEM_TARGET:
            return order
        before = held = held | (key_at.get(cell, 0) if advice.path_length == 0 else 0)
        while advice.path_length > 0 and held == before:
            cell = solution.advise(cell, held).next_cell
            held |= key_at.get(cell, 0)
    return []


def reorder(state: State, colours: Sequence[str]) -> State:
    """The same maze in which the solution fetches its keys in another order of colours; locks follow.

    Args:
        state: of heist, with a solution.
        colours: a permutation of the colours of the keys that the solution fetches.

    Raises:
        ValueError: other colours than the solution's.
    """
    now = [name.split("_")[0] for name in pickup_order(state) if name != "gem"]
    if sorted(colours) != sorted(now):
        raise ValueError(f"the solution fetches {', '.join(now) or 'no keys'}: give a permutation of these colours")
    return recolour(state, dict(zip(now, colours, strict=True)))


def swap_target(state: State, name: str, *, new_colours: bool = False) -> State:
    """The same maze with another entity where the next target lies.

    One key for another is an exchange of their colours, locks included, so that the solution keeps its path. A key for
    the gem is an exchange of places: the level then ends there, or leads on to the key first.

    Args:
        state: of heist, with a solution.
        name: a key or the gem.
        new_colours: lengthen the key ring if it has no place for the key's colour.

    Raises:
        ValueError: no solution, so no target; a name that is neither a key nor the gem; the key that is held; or a
            colour that the ring has no place for.
    """
    order = pickup_order(state)
    if not order:
        raise ValueError("this level has no solution and so no target: check_playable says why")
    if name == "player" or name.endswith("lock"):
        raise ValueError(f"{name} is nothing to fetch: name a key or the gem")
    target = order[0]
    if name == target:
        return copy_state(state)
    if "gem" in (name, target):
        return swap_entities(state, name, target)
    old, new = target.split("_")[0], name.split("_")[0]
    held = read_layout(state).held
    if held >> colour_index(new) & 1:
        raise ValueError(f"the {new} key is held and cannot be fetched: take it first, or choose another target")
    return recolour(state, {old: new, new: old}, new_colours=new_colours)


def walk_square(state: State, name: str, corner: Cell, *, side: int, steps: int) -> list[State]:
    """An entity led around a square, clockwise from its upper left, all else fixed.

    Args:
        state: of heist.
        name: a key, a lock or the gem.
        corner: lower left cell of the square.
        side: moves along each side of the square.
        steps: places along the way, evenly spaced; 4 x side puts one into the centre of every cell, more lie between.

    Returns:
        One state a place; the first is that of the upper left corner.

    Raises:
        ValueError: the entity is not there or is the player, no square, or something on the way: a wall, another
            entity or the player.
    """
    if name == "player":
        raise ValueError("the player stays fixed while an entity walks: name a key, a lock or the gem")
    if side < 1 or steps < 1:
        raise ValueError(f"a square of {side} moves a side in {steps} steps is no walk: both must be at least 1")
    row = find_entity(state, name)
    own = (int(state.entities["x"][row]), int(state.entities["y"][row]))
    left, bottom = corner
    taken = {cell: names for cell, names in occupied_cells(state).items() if cell != own}
    for x, y in _square(left, bottom, side):
        if not (0 <= x < state.grid.shape[1] and 0 <= y < state.grid.shape[0]):
            raise ValueError(f"the walk leads outside the world, at {(x, y)}: choose a smaller square")
        if state.grid[y, x] == WALL:
            raise ValueError(f"the walk leads through a wall, at {(x, y)}: begin from an empty room")
        if (x, y) in taken:
            raise ValueError(f"the walk leads over the {taken[x, y][0]}, at {(x, y)}: move it aside")
    walk: list[State] = []
    for distance in np.arange(steps) * (4 * side / steps):
        edge, along = int(distance // side), distance % side
        x, y = ((along, side), (side, side - along), (side - along, 0), (0, along))[edge]
        placed = copy_state(state)
        placed.entities["x"][row], placed.entities["y"][row] = left + x + 0.5, bottom + y + 0.5
        walk.append(placed)
    return walk


def _square(left: int, bottom: int, side: int) -> list[Cell]:
    """Cells of a square's rim."""
    span = range(side + 1)
    return [(left + x, bottom + y) for x in span for y in span if x in (0, side) or y in (0, side)]
