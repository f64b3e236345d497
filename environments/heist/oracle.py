"""Shortest paths through heist: a breadth-first search over (cell, held keys).

A key opens every lock of its colour and stays held, so held keys only grow. Searching over both solves edited levels
too, where colours and order are free; the target is the next pickup on the shortest full solution. A lock whose key
is nowhere is a wall, a key that opens nothing is passed by.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from environments.heist.layout import Layout, Maze

DIRECTIONS: Final = ("left", "down", "up", "right")
"""Direction names; their order is that of direction labels."""
DIRECTION_STEPS: Final = ((-1, 0), (0, -1), (0, 1), (1, 0))
ACTION_STEPS: Final = tuple((action // 3 - 1, action % 3 - 1) for action in range(9))
"""(dx, dy) of procgen's actions that move; the others, from 9 on, do not."""
DIRECTION_ACTIONS: Final = tuple(ACTION_STEPS.index(step) for step in DIRECTION_STEPS)
"""procgen's action for each direction."""
STAY: Final = 4
"""procgen's action for standing still."""
DEAD_BAND: Final = 0.1
"""Cells off a cell's centre that steering ignores; with 0.2 the player gets stuck at corners (0.6 % of levels)."""

GEM_TARGET: Final = 6
NO_TARGET: Final = -1

Node = tuple[int, int]
"""(cell index, bit mask of held colours)."""


@lru_cache(maxsize=4096)
def _neighbours(side: int, walls: bytes) -> tuple[tuple[tuple[int, int], ...], ...]:
    """For every free cell its (direction, neighbouring free cell) pairs."""
    table: list[tuple[tuple[int, int], ...]] = []
    for cell in range(side * side):
        x, y = cell % side, cell // side
        around = []
        for direction, (dx, dy) in enumerate(DIRECTION_STEPS):
            if not walls[cell] and 0 <= x + dx < side and 0 <= y + dy < side:
                other = cell + dy * side + dx
                if not walls[other]:
                    around.append((direction, other))
        table.append(tuple(around))
    return tuple(table)


@dataclass(frozen=True, slots=True)
class Advice:
    """What the shortest full solution does next.

    Attributes:
        target: index into `ENTITIES` of the next pickup (0 to 2 keys, 6 gem), -1 where the gem cannot be reached.
        path_length: moves to the target's cell; -1 without target.
        total_length: moves to the gem along the full solution; -1 without target.
        directions: bit mask over `DIRECTIONS` of all first moves on a shortest full solution.
        direction: the lowest of them, -1 where there is none (no solution, or already in the target's cell).
        next_cell: the cell that `direction` leads to.
    """

    target: int
    path_length: int
    total_length: int
    directions: int
    direction: int
    next_cell: int

    @property
    def tied(self) -> bool:
        """Whether more than one first move is shortest."""
        return self.directions & (self.directions - 1) != 0


_NOWHERE: Final = Advice(NO_TARGET, -1, -1, 0, -1, -1)


class Plan:
    """Distances to the gem from every (cell, held keys) of one maze, for masks that contain `held`."""

    def __init__(self, maze: Maze, held: int) -> None:
        self._maze = maze
        self._around = _neighbours(maze.side, maze.walls)
        self._key_at: dict[int, int] = {}
        for colour, cell in maze.keys:
            self._key_at[cell] = self._key_at.get(cell, 0) | 1 << colour
        self._lock_at: dict[int, int] = {}
        for colour, cell in maze.locks:
            self._lock_at[cell] = self._lock_at.get(cell, 0) | 1 << colour
        self._distance: dict[Node, int] = {}
        self._advice: dict[Node, Advice] = {}
        self._search_back(held)

    def _search_back(self, held: int) -> None:
        """Breadth-first from the gem against the moves: entering a cell adds its keys to the mask."""
        if self._maze.gem < 0:
            return
        masks = {held}
        for keys in self._key_at.values():
            masks |= {mask | keys for mask in masks}
        distance = self._distance
        queue: deque[Node] = deque()
        for mask in masks:
            distance[self._maze.gem, mask] = 0
            queue.append((self._maze.gem, mask))
        while queue:
            cell, mask = node = queue.popleft()
            keys = self._key_at.get(cell, 0)
            locks = self._lock_at.get(cell, 0)
            if mask & keys != keys:
                continue  # nobody stands in a key's cell without the key
            for before in masks if keys else (mask,):
                if before | keys != mask or locks & ~before:
                    continue
                for _, other in self._around[cell]:
                    if (other, before) not in distance:
                        distance[other, before] = distance[node] + 1
                        queue.append((other, before))

    def advise(self, cell: int, held: int) -> Advice:
        """The next move and pickup for a player in `cell` with `held` keys."""
        node = (cell, held)
        if node not in self._advice:
            self._advice[node] = self._follow(cell, held)
        return self._advice[node]

    def _moves(self, cell: int, held: int) -> list[tuple[int, int, int]]:
        """(direction, cell, held) after each first move on a shortest solution."""
        left = self._distance[cell, held]
        found = []
        for direction, other in self._around[cell]:
            if self._lock_at.get(other, 0) & ~held:
                continue
            after = held | self._key_at.get(other, 0)
            if self._distance.get((other, after), left) == left - 1:
                found.append((direction, other, after))
        return found

    def _follow(self, cell: int, held: int) -> Advice:
        here = self._key_at.get(cell, 0) & ~held
        if here:
            return Advice((here & -here).bit_length() - 1, 0, self._distance.get((cell, held | here), -1), 0, -1, -1)
        total = self._distance.get((cell, held))
        if total is None:
            return _NOWHERE
        if cell == self._maze.gem:
            return Advice(GEM_TARGET, 0, 0, 0, -1, -1)
        first = self._moves(cell, held)
        directions = sum(1 << direction for direction, _, _ in first)
        direction, next_cell, _ = first[0]
        steps, now, keys = 0, cell, held
        while keys == held and now != self._maze.gem:
            _, now, keys = self._moves(now, keys)[0]
            steps += 1
        new = keys & ~held
        target = (new & -new).bit_length() - 1 if new else GEM_TARGET
        return Advice(target, steps, total, directions, direction, next_cell)


@lru_cache(maxsize=1024)  # 11 kB each in easy levels, 94 in those of memory
def plan(maze: Maze, held: int) -> Plan:
    """The plan of a maze as it stands; cached, since a maze changes only when something is picked up or opened."""
    return Plan(maze, held)


def advise(layout: Layout) -> Advice:
    """The oracle's advice for one frame."""
    return plan(layout.maze, layout.held).advise(layout.player, layout.held)


def steer(layout: Layout, advice: Advice) -> int:
    """The action that moves the player's centre towards the next cell's centre, per axis, diagonals included."""
    cell = advice.next_cell if advice.direction >= 0 else layout.player
    side = layout.maze.side
    dx = cell % side + 0.5 - layout.position[0]
    dy = cell // side + 0.5 - layout.position[1]
    step_x = (dx > DEAD_BAND) - (dx < -DEAD_BAND)
    step_y = (dy > DEAD_BAND) - (dy < -DEAD_BAND)
    return (step_x + 1) * 3 + step_y + 1


def main_action(advice: Advice) -> int:
    """The action of the main direction (one of four), `STAY` where there is none."""
    return DIRECTION_ACTIONS[advice.direction] if advice.direction >= 0 else STAY
