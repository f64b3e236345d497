"""Counting episodes while environments play: return, length and whether they were solved."""

from collections import deque
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from datamodules.ranks import gather

EPISODE_WINDOW = 256


class EpisodeTally:
    """Running return and length of N episodes, and those of the last episodes that ended.

    An episode is solved when its last action earned a reward; one that was cut short is not.
    """

    def __init__(self, num_environments: int) -> None:
        self.returns = np.zeros(num_environments)
        self.lengths = np.zeros(num_environments, dtype=np.int64)
        self.finished: deque[tuple[float, float, float]] = deque(maxlen=EPISODE_WINDOW)

    def step(self, reward: Float[np.ndarray, " N"], first: Bool[np.ndarray, " N"], cut: Bool[np.ndarray, " N"]) -> None:
        """Count an action: its reward, whether it ended the episode, whether it only broke the episode off."""
        self.returns += reward
        self.lengths += ~cut
        for slot in np.flatnonzero(first):
            solved = float(reward[slot] > 0)
            self.finished.append((float(self.returns[slot]), solved, float(self.lengths[slot])))
        self.returns[first] = 0
        self.lengths[first] = 0

    def metrics(self) -> dict[str, float]:
        """Means over the last finished episodes, at most 256 of each rank; empty before the first has ended.

        For all ranks to call.
        """
        sums = np.zeros(3) if not self.finished else np.sum(self.finished, axis=0)
        count, *totals = gather(torch.tensor([len(self.finished), *sums], dtype=torch.float64)).sum(0).tolist()
        names = ("agent/return", "agent/solved", "agent/episode_length")
        return {name: total / count for name, total in zip(names, totals, strict=True)} if count else {}

    def state_dict(self) -> dict[str, list[Any]]:
        """Everything as primitives."""
        return {
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "finished": [list(episode) for episode in self.finished],
        }

    def load_state_dict(self, state: dict[str, list[Any]]) -> None:
        """Go on from saved episodes."""
        self.returns = np.asarray(state["returns"], dtype=float)
        self.lengths = np.asarray(state["lengths"], dtype=np.int64)
        self.finished = deque(map(tuple, state["finished"]), maxlen=EPISODE_WINDOW)
