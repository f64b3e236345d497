"""Random walls like heist's own, and the ways through them; each a function of its generator."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool

from environments.heist.layout import Cell
from environments.heist.oracle import DIRECTION_STEPS

SMALLEST: Final = 5
"""Cells a side of the smallest maze that heist makes."""


def random_floor(rng: np.random.Generator, size: int, fork: int = 0) -> Bool[np.ndarray, "size size"]:
    """A random maze without loops as heist has them: cells at even places, joined by Kruskal's algorithm.

    Args:
        rng: draws the order in which cells are joined.
        size: cells a side.
        fork: a cell with at least so many ways, up to 4, is made first, where chance alone seldom makes one.

    Raises:
        ValueError: an even size, or one below 3.
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"a maze of {size} cells a side has no walls between its ways: choose an odd size from 3 on")
    nodes = (size + 1) // 2
    floor = np.zeros((size, size), dtype=bool)
    floor[::2, ::2] = True
    group = list(range(nodes * nodes))
    edges = _edges(nodes)
    order = [edges[index] for index in rng.permutation(len(edges)).tolist()]
    if fork > 0:
        ways = Counter(node for edge in edges for node in edge)
        wide = [node for node in ways if ways[node] >= fork]
        middle = wide[rng.integers(len(wide))]
        order = [edge for edge in order if middle in edge][:fork] + order
    for one, other in order:
        first, second = _root(group, one), _root(group, other)
        if first != second:
            group[first] = second
            floor[one // nodes + other // nodes, one % nodes + other % nodes] = True
    return floor


@cache
def _edges(nodes: int) -> tuple[tuple[int, int], ...]:
    """All pairs of neighbours of a square of so many nodes a side."""
    edges = [(n, n + 1) for n in range(nodes * nodes) if n % nodes < nodes - 1]
    return (*edges, *((n, n + nodes) for n in range(nodes * (nodes - 1))))


def _root(group: list[int], node: int) -> int:
    while group[node] != node:
        group[node] = group[group[node]]
        node = group[node]
    return node


class Walks(NamedTuple):
    """All ways from one cell of a maze without loops.

    Attributes:
        distance: moves to each free cell.
        parent: the cell before each on the way from the start.
        branch: the first cell on the way to each; the start has none.
    """

    distance: dict[Cell, int]
    parent: dict[Cell, Cell]
    branch: dict[Cell, Cell]

    def path(self, cell: Cell) -> list[Cell]:
        """Cells from the first move to `cell`."""
        way: list[Cell] = []
        while cell in self.parent:
            way.append(cell)
            cell = self.parent[cell]
        return way[::-1]


def walks_from(floor: set[Cell], start: Cell) -> Walks:
    """Breadth-first search over the free cells."""
    distance = {start: 0}
    parent: dict[Cell, Cell] = {}
    branch: dict[Cell, Cell] = {}
    queue = [start]
    for cell in queue:
        for dx, dy in DIRECTION_STEPS:
            other = (cell[0] + dx, cell[1] + dy)
            if other in floor and other not in distance:
                distance[other] = distance[cell] + 1
                parent[other] = cell
                branch[other] = branch.get(cell, other)
                queue.append(other)
    return Walks(distance, parent, branch)


def placed_floor(rng: np.random.Generator, side: int, size: int, fork: int = 0) -> Bool[np.ndarray, "side side"]:
    """`random_floor` at a random place in a world of `side` cells, as heist places its own mazes."""
    floor = np.zeros((side, side), dtype=bool)
    left, bottom = rng.integers(side - size + 1, size=2)
    floor[bottom : bottom + size, left : left + size] = random_floor(rng, size, fork)
    return floor


def free_cells(floor: Bool[np.ndarray, "H W"]) -> list[Cell]:
    """The free cells (x, y) of a world."""
    return [(x, y) for y, x in np.argwhere(floor).tolist()]


def open_ways(floor: Bool[np.ndarray, "H W"], cell: Cell) -> int:
    """How many of the four cells next to one are free; nothing lies beyond the world's edge."""
    height, width = floor.shape
    around = [(cell[0] + dx, cell[1] + dy) for dx, dy in DIRECTION_STEPS]
    return sum(0 <= x < width and 0 <= y < height and bool(floor[y, x]) for x, y in around)


def maze_sizes(side: int, size: int | None) -> list[int]:
    """The sizes that a maze may have in a world of `side` cells; the given one alone if there is one.

    Raises:
        ValueError: one that does not fit, or is even.
    """
    possible = list(range(SMALLEST, side + 1, 2))
    if size is not None and size not in possible:
        raise ValueError(f"a maze of {size} cells a side does not fit: choose among {possible} or None")
    return possible if size is None else [size]


def sample_cells(rng: np.random.Generator, cells: Sequence[Cell], count: int | None = None) -> list[Cell]:
    """So many different cells, or all of them, in random order."""
    return [cells[index] for index in rng.permutation(len(cells))[:count].tolist()]
