"""What a saved state says about heist: the maze, who stands where, which keys are held."""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from environments.state import END_MARKER, WALL, State

PLAYER: Final = 0
LOCK: Final = 1
KEY: Final = 2
GEM: Final = 9
KEY_ON_RING: Final = 11
_WORLD_DIMS: Final = (9, 13, 23)  # easy, hard, memory

GEM_REWARD: Final = 10.0
"""What the game pays, once, for the gem."""

COLOURS: Final = ("blue", "green", "red")
"""Key colours by procgen's `image_theme`."""

ENTITIES: Final = (
    "blue_key",
    "green_key",
    "red_key",
    "blue_lock",
    "green_lock",
    "red_lock",
    "gem",
    "player",
)
"""Entity names; their order is the K axis of every label."""

Cell = tuple[int, int]
"""(x, y) in cells; y grows upwards, as in procgen."""


@dataclass(slots=True)
class HeistPart:
    """Heist's own part of a saved state (the `tail` of `State`).

    Attributes:
        num_keys: colours of keys in the level.
        world_dim: side of the world in cells: 9 easy, 13 hard, 23 memory.
        has_keys: by colour, whether the player holds the key. procgen does not check its length against the colours
            of the entities: keep it as long as the largest colour in use.
    """

    num_keys: int
    world_dim: int
    has_keys: list[bool]

    @classmethod
    def from_tail(cls, tail: bytes) -> "HeistPart":
        """Parse `State.tail`.

        Raises:
            ValueError: the state is of another game.
        """
        numbers = struct.unpack(f"<{len(tail) // 4}i", tail)
        # the part of fruitbot in hard mode is as long as one of heist without keys
        if len(numbers) < 4 or len(numbers) != 4 + numbers[2] or numbers[1] not in _WORLD_DIMS:
            raise ValueError("this state is not one of heist: only heist has keys, locks and an oracle here")
        num_keys, world_dim, count = numbers[:3]
        return cls(num_keys, world_dim, [bool(flag) for flag in numbers[3 : 3 + count]])

    def to_tail(self) -> bytes:
        """The bytes that `State.tail` holds."""
        count = len(self.has_keys)
        return struct.pack(f"<{3 + count}i", self.num_keys, self.world_dim, count, *self.has_keys) + END_MARKER


@dataclass(frozen=True, slots=True)
class Maze:
    """What a shortest path depends on, hashable so that plans are computed once.

    Attributes:
        side: width and height in cells.
        walls: one byte a cell, row-major (y * side + x), 1 where a wall stands.
        keys: (colour, cell index) of keys still lying in the maze.
        locks: (colour, cell index) of locks still closed.
        gem: the gem's cell index, -1 where there is none.
    """

    side: int
    walls: bytes
    keys: tuple[tuple[int, int], ...]
    locks: tuple[tuple[int, int], ...]
    gem: int


@dataclass(frozen=True, slots=True)
class Layout:
    """One frame of heist, read from its state.

    Attributes:
        maze: the maze as it is now.
        held: bit mask of held colours.
        position: the player's centre (x, y) in cells.
    """

    maze: Maze
    held: int
    position: tuple[float, float]

    @property
    def player(self) -> int:
        """Index of the cell in which the player's centre lies."""
        return int(self.position[1]) * self.maze.side + int(self.position[0])


def read_layout(state: State) -> Layout:
    """Maze, held keys and player of a heist state; HUD icons are no keys and are left out."""
    part = HeistPart.from_tail(state.tail)
    side = state.grid.shape[0]
    keys: list[tuple[int, int]] = []
    locks: list[tuple[int, int]] = []
    gem = -1
    rows = state.entities[["x", "y", "type", "image_theme", "will_erase"]].tolist()
    for x, y, kind, theme, will_erase in rows:
        if will_erase:
            continue
        cell = int(y) * side + int(x)
        if kind == KEY:
            keys.append((theme, cell))
        elif kind == LOCK:
            locks.append((theme, cell))
        elif kind == GEM:
            gem = cell
    walls = (state.grid == WALL).astype(np.uint8).tobytes()
    held = sum(1 << colour for colour, flag in enumerate(part.has_keys) if flag)
    maze = Maze(side, walls, tuple(sorted(keys)), tuple(sorted(locks)), gem)
    return Layout(maze, held, (rows[0][0], rows[0][1]))
