"""What recorded play went on to do: labels of a frame that only its future knows."""

import numpy as np
from jaxtyping import Bool, Int

from environments.heist import ENTITIES

UNKNOWN = -1
_GEM = ENTITIES.index("gem")
_NO_EVENT = len(ENTITIES)


def outcomes(
    held: Bool[np.ndarray, "T N 3"],
    cells: Int[np.ndarray, "T N K 2"],
    began: Bool[np.ndarray, "T N"],
    solved: Bool[np.ndarray, "T N"],
) -> tuple[Int[np.ndarray, "T N"], Int[np.ndarray, "T N"]]:
    """What the player touches next, and in how many actions it picks the next thing up.

    Args:
        held: held keys at each step.
        cells: cells of entities at each step, -1 where there is none.
        began: whether the frame of a step is the first of an episode.
        solved: whether the action before that frame reached the gem.

    Returns:
        pursued: index into `ENTITIES` of the key picked up, the lock opened or the gem reached next.
        steps: actions until the next key or gem. Both `UNKNOWN` where the episode or the recording ends before.
    """
    steps_count, count = began.shape
    pursued = np.full((steps_count, count), UNKNOWN)
    steps = np.full((steps_count, count), UNKNOWN)
    for step in range(steps_count - 2, -1, -1):
        after = step + 1
        lying = cells[step, :, :6, 0] >= 0
        gone = np.concatenate([held[after] & ~held[step], lying[:, 3:] & (cells[after, :, 3:6, 0] < 0)], axis=1)
        gone &= ~began[after, :, None]
        gem = began[after] & solved[after]
        event = np.where(gone.any(1), gone.argmax(1), np.where(gem, _GEM, _NO_EVENT))
        later = np.where(began[after], UNKNOWN, pursued[after])
        pursued[step] = np.where(event < _NO_EVENT, event, later)
        later = np.where(began[after] | (steps[after] < 0), UNKNOWN, steps[after] + 1)
        steps[step] = np.where((event < 3) | (event == _GEM), 1, later)
    return pursued, steps
