"""Random mazes that ask for a choice, or hold keys and locks in unequal numbers; each a function of its generator."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from environments.heist.entities import check_name, colour_index
from environments.heist.layout import Cell
from environments.heist.mazes import write_maze
from environments.heist.playable import check_playable
from environments.heist.random_mazes import (
    Walks,
    free_cells,
    maze_sizes,
    open_ways,
    placed_floor,
    sample_cells,
    walks_from,
)
from environments.heist.scenarios import move_entity, occupied_cells
from environments.state import WALL, State

_ATTEMPTS: Final = 2_000
_Place = tuple[str, Cell]


def choice_maze(
    state: State,
    rng: np.random.Generator,
    *,
    entities: Sequence[str] = ("blue_key", "red_key"),
    distances: tuple[int, int] = (2, 8),
    spread: int = 1,
    size: int | None = None,
) -> State:
    """A random maze in which each of several entities can be fetched at once, each by another first move.

    The player stands at a fork and no entity lies on the way to another. One distance is drawn uniformly for all, so
    that none is nearer on average, and which goes where is drawn too. Every key has its lock: with the gem among the
    entities the locks stand aside, otherwise they bar the way to the gem, so that the level needs all the keys.

    Args:
        state: of heist; see `write_maze` for what of it stays.
        rng: draws walls, places and distances; the same generator state gives the same maze.
        entities: two to four keys or the gem.
        distances: least and greatest number of moves to the nearest of them.
        spread: the distances of two entities differ by at most so much.
        size: cells a side of the maze, odd; drawn anew from those that the world has if None.

    Raises:
        ValueError: fewer than two different entities, locks among them, or entities, distances and size for which no
            maze was found.
    """
    side = state.grid.shape[0]
    for name in entities:
        check_name(name)
    if len(set(entities)) != len(entities) or len(entities) < 2:
        raise ValueError(f"entities {list(entities)} leave nothing to choose: name two to four different ones")
    if wrong := [name for name in entities if name == "player" or name.endswith("lock")]:
        raise ValueError(f"{wrong[0]} is nothing to fetch: name keys or the gem")
    if not 1 <= distances[0] <= distances[1] or spread < 0:
        raise ValueError(f"distances {distances} must rise from at least 1, and spread {spread} be at least 0")
    sizes = maze_sizes(side, size)
    nearest = int(rng.integers(distances[0], distances[1] + 1))
    fork = len(entities) if len(entities) > 2 else 0  # two ways lead from most cells
    for _ in range(_ATTEMPTS):
        floor = placed_floor(rng, side, int(rng.choice(sizes)), fork)
        cells = free_cells(floor)
        forks = [cell for cell in cells if open_ways(floor, cell) >= len(entities)]
        if not forks:
            continue
        player = forks[rng.integers(len(forks))]
        walks = walks_from(set(cells), player)
        chosen = _choose(rng, walks, len(entities), nearest, spread)
        if chosen is None:
            continue
        places = list(zip(entities, chosen, strict=True))
        rest = _locks_and_gem(rng, walks, places)
        if rest is not None:
            return write_maze(state, floor, [*places, *rest], player, rng=rng)
    raise ValueError(
        f"no maze was found with {', '.join(entities)} {nearest} to {nearest + spread} moves away, each in its own "
        f"direction, in {_ATTEMPTS} attempts: allow other distances, a greater spread or another size than {size}"
    )


def _choose(rng: np.random.Generator, walks: Walks, count: int, nearest: int, spread: int) -> list[Cell] | None:
    """A cell in each of `count` branches, the nearest at the given distance; None where there are none."""
    branches = sorted(set(walks.branch.values()))
    order = rng.permutation(len(branches))[:count].tolist()
    chosen: list[Cell] = []
    for place in order:
        # the first lies at the distance itself, the others up to `spread` further: then all are shuffled
        far = nearest + (spread if chosen else 0)
        cells = [
            cell
            for cell, branch in walks.branch.items()
            if branch == branches[place] and nearest <= walks.distance[cell] <= far
        ]
        if not cells:
            return None
        chosen.append(cells[rng.integers(len(cells))])
    return [chosen[index] for index in rng.permutation(count)]


def _locks_and_gem(rng: np.random.Generator, walks: Walks, places: list[_Place]) -> list[_Place] | None:
    """Locks of all keys, and the gem unless it is among the places; None where there is no room for them."""
    ways = {cell for _, where in places for cell in walks.path(where)}
    locks = [name.replace("key", "lock") for name, _ in places if name != "gem"]
    aside = [cell for cell in walks.parent if cell not in ways]
    if len(locks) < len(places):
        return list(zip(locks, sample_cells(rng, aside, len(locks)), strict=True)) if len(aside) >= len(locks) else None
    barred = {
        gem: path for gem in aside if len(path := [c for c in walks.path(gem)[:-1] if c not in ways]) >= len(locks)
    }
    if not barred:
        return None
    gem = sample_cells(rng, list(barred), 1)[0]
    return [*zip(locks, sample_cells(rng, barred[gem], len(locks)), strict=True), ("gem", gem)]


def keys_and_locks(
    state: State,
    rng: np.random.Generator,
    *,
    keys: Sequence[str],
    locks: Sequence[str],
    held: Sequence[str] = (),
    size: int | None = None,
) -> State:
    """A random maze with keys and locks in any numbers: does an agent fetch keys that it has no use for?

    All locks bar the way to the gem, all keys lie before the first of them. The case of more keys than locks, met
    after training on the opposite, is the keys-and-chests test of Langosco et al. (2022, arXiv 2105.14111); heist
    differs from it in that a key opens every lock of its colour and is not used up.

    Args:
        state: of heist; see `write_maze` for what of it stays.
        rng: draws walls and places.
        keys: colour of each key in the maze; a colour may come more than once.
        locks: colour of each lock, likewise.
        held: colours of held keys.
        size: cells a side of the maze, odd; drawn anew from those that the world has if None.

    Raises:
        ValueError: a lock without its key, or more of them than a maze was found for.
    """
    for colour in (*keys, *locks, *held):
        colour_index(colour)
    if orphans := sorted(set(locks) - {*keys, *held}):
        raise ValueError(f"a {orphans[0]} lock without a {orphans[0]} key can never be opened: add the key, or hold it")
    sizes = maze_sizes(state.grid.shape[0], size)
    for _ in range(_ATTEMPTS):
        floor = placed_floor(rng, state.grid.shape[0], int(rng.choice(sizes)))
        cells = free_cells(floor)
        player, gem = sample_cells(rng, cells, 2)
        walks = walks_from(set(cells), player)
        way = walks.path(gem)[:-1]
        if len(way) < len(locks):
            continue
        barriers = sample_cells(rng, way, len(locks))
        open_cells = walks_from(set(cells) - {*barriers, gem}, player).parent
        if len(open_cells) < len(keys):
            continue
        places = [
            *zip((f"{colour}_key" for colour in keys), sample_cells(rng, list(open_cells), len(keys)), strict=True),
            *zip((f"{colour}_lock" for colour in locks), barriers, strict=True),
            ("gem", gem),
        ]
        return check_playable(write_maze(state, floor, places, player, held=held, rng=rng))
    raise ValueError(
        f"no maze of {size or sizes[-1]} cells a side was found with room for {len(keys)} keys before {len(locks)} "
        f"locks in {_ATTEMPTS} attempts: ask for fewer"
    )


def shift_lock(state: State, rng: np.random.Generator, keep_free: Sequence[str]) -> State:
    """The same maze with a lock elsewhere, off the ways from the player to the named entities: a change that does not
    concern who wants to fetch one of them. Not checked for a solution.

    Args:
        state: of heist, without loops.
        rng: draws the lock and the cell.
        keep_free: entities whose ways stay as they are.

    Raises:
        ValueError: no lock, or no free cell off these ways.
    """
    taken = occupied_cells(state)
    where = {name: cell for cell, names in taken.items() for name in names}
    walks = walks_from(set(free_cells(state.grid != WALL)), where["player"])
    ways = {cell for name in keep_free for cell in walks.path(where[name])}
    locks = sorted(name for name in where if name.endswith("lock") and where[name] not in ways)
    aside = [cell for cell in walks.parent if cell not in ways and cell not in taken]
    if not locks or not aside:
        raise ValueError(f"this maze has no lock off the ways to {', '.join(keep_free)}, or no cell to move one to")
    return move_entity(state, locks[rng.integers(len(locks))], aside[rng.integers(len(aside))])
