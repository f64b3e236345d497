"""Frames with the moves that go to an entity that is asked for: what an edit is fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from environments import EnvironmentSettings, State, render_states
from environments.heist import ACTION_STEPS, DIRECTION_STEPS, STAY, Labels
from environments.heist.asked import anywhere, label_asked
from interpretability.choices import play_choices, retrace
from networks.precision import DEFAULT_PRECISION, Precision
from networks.taps import Edit, TappedAgent

_STILL = 0.01
"""Cells; a player that an action moved by less is held by something."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class AskedMoves:
    """Frames on the way to an entity, and the actions that go there.

    Attributes:
        frames: uint8 [N 64 64 3].
        wanted: the actions with the right direction in them, diagonals included, [N A].
        place: the entity's cell as a box, left, top, right and bottom as parts of the frame's sides, [N 4].
    """

    frames: UInt8[Tensor, "N 64 64 3"]
    wanted: Bool[Tensor, "N A"]
    place: Float[Tensor, "N 4"]

    def __add__(self, other: "AskedMoves") -> "AskedMoves":
        return AskedMoves(
            torch.cat([self.frames, other.frames]),
            torch.cat([self.wanted, other.wanted]),
            torch.cat([self.place, other.place]),
        )

    def outside(self, rows: Int[Tensor, " B"], height: int, width: int, around: float = 0.5) -> Bool[Tensor, "B H W"]:
        """Which positions of a map laid over the whole frame have their middle outside the entity's cell.

        Of a map so coarse that no middle lies in the cell, the nearest position is inside.

        Args:
            rows: frames.
            height, width: H and W.
            around: cells around it that do not count as outside yet.
        """
        left, top, right, bottom = self.place[rows].T[:, :, None]
        near = []
        for low, high, side in ((top, bottom, height), (left, right, width)):
            middles = (torch.arange(side) + 0.5) / side
            reach = ((0.5 + around) * (high - low)).clamp(min=0.5 / side + _ROUNDING)
            near.append((middles - (low + high) / 2).abs() <= reach)
        return ~(near[0][:, :, None] & near[1][:, None, :])


def asked_moves(
    mazes: Sequence[State],
    entity: str,
    rng: np.random.Generator,
    settings: EnvironmentSettings,
    num_actions: int,
    places: int = 1,
) -> AskedMoves:
    """The player anywhere that it can come to without touching anything, in each maze so many times.

    Places from which no way leads to the entity but past another one are left out.

    Args:
        mazes: in each of which the entity can be walked to.
        entity: a key or the gem.
        rng: draws the places.
        settings: heist's.
        num_actions: A.
        places: of each maze.

    Raises:
        ValueError: a maze without the entity.
    """
    states = [anywhere(maze, rng) for maze in mazes for _ in range(places)]
    frames = render_states([state.to_bytes() for state in states], settings)
    labels = label_asked(states, entity)
    return _moves(frames, labels, np.zeros(len(states), dtype=bool), num_actions)


def own_moves(
    agent: TappedAgent,
    edits: Sequence[Edit],
    mazes: Sequence[State],
    entity: str,
    *,
    settings: EnvironmentSettings,
    seed: int = 0,
    max_steps: int = 60,
    num_environments: int = 64,
    precision: Precision = DEFAULT_PRECISION,
) -> AskedMoves:
    """Every frame that the edited agent comes to in its own play until it touches something, and what it should do.

    Where its last action did not move it, only the action that steers to the middle of the way counts as wanted: a
    corner holds the player by a few hundredths of a cell, and pushing on does not free it.

    Args:
        agent, edits, settings, seed, max_steps, num_environments, precision: as for `play_choices`.
        mazes: where it plays.
        entity: that it should go to.
    """
    states = [maze.to_bytes() for maze in mazes]
    played = play_choices(
        agent, states, settings=settings, edits=edits, seed=seed, max_steps=max_steps, precision=precision,
        num_environments=num_environments,
    )  # fmt: skip
    rows, frames, visited = [], [], []
    for row, _, frame, state in retrace(states, played.actions, settings, num_environments=num_environments):
        rows.append(row)
        frames.append(frame)
        visited.append(State.from_bytes(state))
    order = np.argsort(rows, kind="stable")  # each maze's steps one after another
    labels = label_asked([visited[index] for index in order], entity)
    same = np.diff(np.array(rows)[order], prepend=-1) == 0
    moved = np.abs(np.diff(labels.position, axis=0, prepend=np.inf)).max(1) >= _STILL
    return _moves(np.stack(frames)[order], labels, same & ~moved, agent.taps["logits"][0])


def _moves(
    frames: UInt8[np.ndarray, "N 64 64 3"], labels: Labels, stuck: Bool[np.ndarray, " N"], num_actions: int
) -> AskedMoves:
    steps = np.zeros((num_actions, 2), dtype=np.int64)
    steps[: len(ACTION_STEPS)] = ACTION_STEPS
    there = labels.directions[:, None] >> np.arange(len(DIRECTION_STEPS)) & 1
    wanted = there @ (np.array(DIRECTION_STEPS) @ steps.T > 0) > 0
    steering = np.eye(num_actions, dtype=bool)[labels.oracle_action]
    wanted = np.where((stuck & (labels.oracle_action != STAY))[:, None], steering, wanted)
    known = labels.directions > 0
    x, y = labels.target_cell[known].T
    side = labels.world_dim[known]
    place = np.stack([x, side - 1 - y, x + 1, side - y], 1) / side[:, None]  # row 0 is the top, cells count from below
    return AskedMoves(torch.from_numpy(frames[known]), torch.from_numpy(wanted[known]), torch.from_numpy(place).float())
