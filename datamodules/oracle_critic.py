"""A critic that knows the shortest path: a baseline for reinforcement learning where an agent's own is not yet good."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from environments.heist import DIRECTION_STEPS, ENTITIES, GEM_REWARD, label_states

_PLAYER = ENTITIES.index("player")
_STEPS_XY = np.array([*DIRECTION_STEPS, (0, 0)])  # the last is that of direction -1: no move


class OracleCritic:
    """Values heist's states as if the oracle played on from them: reward x discount^(steps to the gem).

    Only training sees it (an asymmetric actor-critic, Pinto et al. 2017); the agent still acts on frames alone. As a
    baseline it is what potential-based shaping by the same quantity would be (Wiewiora 2003): it says at once whether
    a step came nearer to the gem, where rewards would say so an episode later. The optimal policy stays optimal.

    Steps to the gem are the moves of the shortest solution over cells, less what has been covered of the first of
    them (as |dx| + |dy| to the next cell's centre, so that it also pays to get round a corner that blocks the way by
    a fraction of a cell), times `steps_per_cell`.

    Args:
        frames: environment frames over which the oracle's values give way to the agent's own, linearly, after
            `constant_frames`.
        constant_frames: environment frames during which the baseline is the oracle's alone.
        steps_per_cell: steps that the oracle takes a cell; 1.84 measured over 706 easy levels.

    Raises:
        ValueError: numbers below what makes sense.
    """

    def __init__(self, frames: int, constant_frames: int = 0, steps_per_cell: float = 1.84) -> None:
        if frames < 1 or constant_frames < 0 or steps_per_cell <= 0:
            raise ValueError(
                f"frames {frames} must be at least 1, constant_frames {constant_frames} at least 0 and "
                f"steps_per_cell {steps_per_cell} above 0"
            )
        self.frames = frames
        self.constant_frames = constant_frames
        self.steps_per_cell = steps_per_cell

    def weight(self, env_steps: int) -> float:
        """The oracle's share of the baseline after so many environment frames: 1 at first, 0 in the end."""
        return min(1.0, max(0.0, 1.0 - (env_steps - self.constant_frames) / self.frames))

    def __call__(self, states: Sequence[bytes], discount: float) -> Float32[np.ndarray, " N"]:
        """The value of each state in units of raw reward; 0 where the gem cannot be reached.

        Raises:
            ValueError: a state is not one of heist.
        """
        labels = label_states(states)
        centres = labels.cells[:, _PLAYER] + _STEPS_XY[labels.direction] + 0.5
        rest = np.abs(centres - labels.position).sum(-1)
        moves = np.maximum(labels.total_length - (labels.direction >= 0), 0) + rest
        values = GEM_REWARD * discount ** (self.steps_per_cell * moves)
        return np.where(labels.total_length >= 0, values, 0).astype(np.float32)
