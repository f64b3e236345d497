"""Showing an episode again exactly as it was: its actions are remembered, not its frames."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, UInt8

from environments import EnvironmentSettings, VectorEnvironment
from interpretability.episodes import PlayedStep


class ActionLog:
    """Observer of `play_episodes` that remembers the actions taken on every level: a few bytes a step.

    A level's course depends on nothing but its seed and the actions, so `replay` finds every frame and state again
    without the agent, whose bf16 logits may differ with the company that a level is played in.
    """

    def __init__(self) -> None:
        self._actions: dict[int, list[int]] = defaultdict(list)

    def __call__(self, step: PlayedStep) -> None:
        for level, action in zip(step.levels.tolist(), step.actions.tolist(), strict=True):
            self._actions[level].append(action)

    def actions(self, level: int) -> list[int]:
        """What was done on a level, in order; empty for a level that was not played."""
        return list(self._actions.get(level, ()))


@dataclass(frozen=True)
class Replay:
    """T steps of one level. The game draws no frame of an episode after its last action.

    Attributes:
        level: its seed.
        actions: taken at each step; those given after the episode had ended are left out.
        frames: on which they were taken.
        states: saved states of the same moments.
        rewards: that they earned.
        ended: whether the last action ended the episode.
    """

    level: int
    actions: Int[np.ndarray, " T"]
    frames: UInt8[np.ndarray, "T 64 64 3"]
    states: list[bytes]
    rewards: Float32[np.ndarray, " T"]
    ended: bool

    @property
    def solved(self) -> bool:
        """Whether the episode ended with a reward."""
        return self.ended and bool(self.rewards[-1] > 0)


def replay(level: int, actions: Sequence[int], settings: EnvironmentSettings, start: bytes | None = None) -> Replay:
    """Take the given actions on a level, from its beginning, or from a saved state, until they or the episode end.

    Raises:
        ValueError: no action, or one that procgen does not have.
    """
    if len(actions) == 0:
        raise ValueError(f"level {level}: no action to take, give at least one")
    environment = VectorEnvironment(settings, 1)
    frames: list[np.ndarray] = []
    states: list[bytes] = []
    rewards: list[float] = []
    ended = False
    try:
        if not all(0 <= action < environment.num_actions for action in actions):
            raise ValueError(f"level {level}: actions must be 0 to {environment.num_actions - 1}")
        if start is None:
            environment.play_levels([level])
        else:
            environment.set_states([start])
        frame = environment.observe()[1][0]
        for action in actions:
            frames.append(frame.copy())
            states += environment.get_states()
            environment.act(np.array([action]))
            reward, (frame,), first = environment.observe()
            rewards.append(float(reward[0]))
            if ended := bool(first[0]):
                break
    finally:
        environment.close()
    taken = np.array(actions[: len(frames)], dtype=np.int64)
    return Replay(level, taken, np.stack(frames), states, np.array(rewards, dtype=np.float32), ended)
