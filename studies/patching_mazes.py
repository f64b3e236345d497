"""What the patching study patches: mazes and the same mazes exchanged, and sets of positions in them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from environments import EnvironmentSettings, render_states
from environments.heist import ENTITIES, label_states, shift_lock, swap_entities
from environments.heist.asked import label_asked
from environments.heist.oracle import ACTION_STEPS, DIRECTION_STEPS
from interpretability.episodes import first_states
from interpretability.patching import near
from studies.retargeting_search import choice_mazes

SETS: Final = {
    "all": "the whole tap",
    "both": "cells of both entities",
    "both_around": "both and the cells around",
    "preferred": "cell of the preferred entity",
    "other": "cell of the other entity",
    "player_around": "player and the cells around",
    "entities_and_player": "all three and the cells around",
    "sham": "as many as both and around, elsewhere",
    "without_both": "all but both and around",
    "without_player": "all but player and around",
}
"""Sets of positions, in words; of flat taps only the first."""
_NONE: Final = "none"


class Pair(NamedTuple):
    """A maze and the same maze with two entities in each other's places.

    Attributes:
        frames: of the maze, of the exchanged one, and of the maze with a lock moved aside.
        shifted: whether there was a lock to move, and a cell to move it to.
        towards: actions that go to where each entity lies in the maze, the preferred one first.
        cells: (x, y) of the preferred entity and of the other in the maze, and of the player.
        side: cells a side of the world.
    """

    frames: UInt8[Tensor, "3 64 64 3"]
    shifted: bool
    towards: Bool[Tensor, "2 A"]
    cells: Int[np.ndarray, "3 2"]
    side: int

    def places(self, exchanged: int) -> dict[str, tuple[int, int]]:
        """The cells in one of the two frames."""
        preferred, other, player = [(int(x), int(y)) for x, y in self.cells]
        if exchanged:
            preferred, other = other, preferred
        return {"preferred": preferred, "other": other, "player": player}


def make_pairs(
    levels: range, settings: EnvironmentSettings, *, distances: tuple[int, int], seed: int, num_actions: int
) -> list[Pair]:
    """A pair for each level; all two of blue, green and red key and gem in turn, the one first in that order preferred.

    That is the order in which natural levels want them.
    """
    mazes = choice_mazes(first_states(levels, settings), seed, distances)
    states, shifted = [], []
    for maze, names in mazes:
        try:
            aside = shift_lock(maze, np.random.default_rng([seed, maze.level_seed, 1]), names)
        except ValueError:  # a small maze may be full
            aside = maze
        shifted.append(aside is not maze)
        states += [state.to_bytes() for state in (maze, swap_entities(maze, *names), aside)]
    frames = torch.from_numpy(render_states(states, settings)).unflatten(0, (-1, 3))
    labels = label_states([maze.to_bytes() for maze, _ in mazes])
    made = []
    for row, (maze, names) in enumerate(mazes):
        ways = [int(label_asked([maze], name).directions[0]) for name in names]
        towards = torch.stack([_actions_towards(way, num_actions) for way in ways])
        cells = labels.cells[row, [ENTITIES.index(name) for name in (*names, "player")]].astype(np.int64)
        made.append(Pair(frames[row], shifted[row], towards, cells, int(labels.world_dim[row])))
    return made


def position_sets(pair: Pair, exchanged: int, shape: Sequence[int]) -> dict[str, Bool[Tensor, "1 *HW"]]:
    """The sets of positions of a tap of this shape in one of the two frames; the first of them is empty."""
    whole = torch.ones(1, *shape[1:], dtype=torch.bool)
    sets = {_NONE: ~whole, "all": whole}
    if len(shape) != 3:
        return sets
    places = pair.places(exchanged)

    def around(radius: float, *names: str) -> Bool[Tensor, "1 H W"]:
        cells = [places[name] for name in names]
        found = [near((x + 0.5, y + 0.5), radius, pair.side, shape) for x, y in cells]
        return torch.stack(found).any(0)

    cells, both, player = around(0.5, "preferred", "other"), around(1.5, "preferred", "other"), around(1.5, "player")
    return sets | {
        "both": cells,
        "both_around": both,
        "preferred": around(0.5, "preferred"),
        "other": around(0.5, "other"),
        "player_around": player,
        "entities_and_player": both | player,
        "sham": _elsewhere(both, cells),
        "without_both": ~both,
        "without_player": ~player,
    }


def _elsewhere(around: Bool[Tensor, "1 H W"], cells: Bool[Tensor, "1 H W"]) -> Bool[Tensor, "1 H W"]:
    """The positions around entities moved (round the map's edges) by about half the map, to where they meet the
    entities' cells least, and then those around them.

    Moved by exactly half, they would hold an entity's own cell again in a sixth of the mazes or more.
    """
    mask, spared = around[0].double(), (around + around.numel() * cells)[0].double()
    met = torch.fft.ifft2(torch.fft.fft2(spared) * torch.fft.fft2(mask).conj()).real.round()  # by how far it is moved
    down, across = ((torch.arange(size) - size // 2).abs() for size in mask.shape)
    moved = int((met * sum(mask.shape) + down[:, None] + across).argmin())
    return around.roll(divmod(moved, mask.shape[1]), (1, 2))


def _actions_towards(directions: int, num_actions: int) -> Bool[Tensor, " A"]:
    """Actions with one of these directions in them, diagonals included."""
    steps = np.zeros((num_actions, 2), dtype=np.int64)
    steps[: len(ACTION_STEPS)] = ACTION_STEPS
    chosen = [step for number, step in enumerate(DIRECTION_STEPS) if directions >> number & 1]
    return torch.from_numpy((np.array(chosen) @ steps.T > 0).any(0))
