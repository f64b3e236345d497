"""Recorded episodes, read as windows: of some steps in the middle of an episode, or of whole short ones."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, Int64, Shaped, UInt8
from torch import Tensor

from datamodules.frame_patches import PackedFrames
from datamodules.recorder import Rows
from datamodules.reused_memory import ReusedMemory
from environments import FRAME_SHAPE
from environments.heist import GEM_REWARD
from networks import TrajectoryWindow


class TrajectoryBatch(NamedTuple):
    """Windows of T steps of B episodes, with what was not shown to the player.

    Attributes:
        window: what a decision transformer eats. Where the data module leaves frames out they are [B T 0 0 0].
        labels: by name: int64 [B T ...] (`position`: float32), -1 where the window is padded. `source` is the index
            of the source that played.
        features: what a frozen agent's tap yields for each frame, float16; zero where the window is padded.
    """

    window: TrajectoryWindow
    labels: dict[str, Shaped[Tensor, "B T ..."]]
    features: Shaped[Tensor, "B T *F"] | None = None


def returns_to_go(
    steps: Int[np.ndarray, " E"], solved: Bool[np.ndarray, " E"], discount: float
) -> Float32[np.ndarray, " R"]:
    """10 x discount^(actions to the gem) at each step of episodes one after the other.

    The action taken at the step counts, so the last frame of a solved episode has 10 x discount. 0 throughout episodes
    that do not reach the gem. While playing on, the return asked for is to be divided by the discount at each step.
    """
    ends = np.repeat(np.cumsum(steps), steps)
    left = ends - np.arange(len(ends))
    return np.where(np.repeat(solved, steps), GEM_REWARD * discount**left, 0).astype(np.float32)


class TrajectoryStore:
    """Episodes of several shards; columns of a few bytes a step in memory, frames inflated when read.

    Args:
        shards: what `datamodules.trajectory_recorder.TrajectoryRecorder` recorded.
        sources: for each shard the index of the source that played it.
        discount: of returns to go.
        labels: names of those that windows carry.
        features: for each shard the features [R ...] of its frames, where windows are to carry them.
        frames: whether windows carry frames.

    Attributes:
        source, level, steps, solved, cut: of each episode [E]; `steps` is its length.
        actions, returns, labels: of each step of all episodes [R ...], labels by name.
    """

    def __init__(
        self,
        shards: Sequence[Rows],
        sources: Sequence[int],
        *,
        discount: float,
        labels: Sequence[str],
        features: Sequence[Tensor] | None = None,
        frames: bool = True,
    ) -> None:
        def column(name: str) -> Shaped[np.ndarray, "..."]:
            return np.concatenate([shard[name].numpy() for shard in shards])

        episodes = [len(shard["episodes/steps"]) for shard in shards]
        self.source: Int[np.ndarray, " E"] = np.repeat(np.asarray(sources), episodes)
        self.level: Int[np.ndarray, " E"] = column("episodes/level")
        self.steps: Int[np.ndarray, " E"] = column("episodes/steps").astype(np.int64)
        self.solved: Bool[np.ndarray, " E"] = column("episodes/solved")
        self.cut: Bool[np.ndarray, " E"] = column("episodes/cut")
        self._shard = np.repeat(np.arange(len(shards)), episodes)
        self._in_shard = np.concatenate([np.arange(count) for count in episodes])
        self._row = np.cumsum(self.steps) - self.steps
        self._shard_row = np.concatenate([[0], np.cumsum([len(shard["actions"]) for shard in shards])])
        self.actions: UInt8[np.ndarray, " R"] = column("actions")
        self.returns: Float32[np.ndarray, " R"] = returns_to_go(self.steps, self.solved, discount)
        self.labels = {name: column(f"labels/{name}") for name in labels if name != "source"}
        if "source" in labels:
            self.labels["source"] = np.repeat(self.source, self.steps)
        self._packed = [PackedFrames.from_rows(shard) for shard in shards] if frames else None
        self._features = features
        self._memory: dict[tuple[int, ...], ReusedMemory] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def windows(self, episodes: Int[np.ndarray, " B"], starts: Int[np.ndarray, " B"], context: int) -> TrajectoryBatch:
        """Steps `starts` to `starts + context` of each episode, padded on the right where it ends before."""
        places = starts[:, None] + np.arange(context)
        mask = places < self.steps[episodes, None]
        rows = np.where(mask, self._row[episodes, None] + places, 0)

        def read(values: Shaped[np.ndarray, "R ..."], padding: float) -> Tensor:
            kind = np.float32 if values.dtype.kind == "f" else np.int64
            taken = values[rows].astype(kind)
            taken[~mask] = padding
            return torch.from_numpy(taken)

        window = TrajectoryWindow(
            self._frames(episodes, starts, context),
            read(self.actions, 0),
            read(self.returns, 0),
            torch.from_numpy(np.where(mask, places, 0)),
            torch.from_numpy(mask),
        )
        labels = {name: read(values, -1) for name, values in self.labels.items()}
        return TrajectoryBatch(window, labels, self._read_features(episodes, starts, context))

    def episode_frames(self, episode: int) -> UInt8[np.ndarray, "L 64 64 3"]:
        """All frames of one episode."""
        assert self._packed is not None
        frames = np.empty((int(self.steps[episode]), *FRAME_SHAPE), dtype=np.uint8)
        self._packed[self._shard[episode]].read(int(self._in_shard[episode]), 0, frames)
        return frames

    def episode_rows(self, episode: int) -> slice:
        """Where an episode's steps lie in `actions` and `returns`."""
        return slice(int(self._row[episode]), int(self._row[episode] + self.steps[episode]))

    def _frames(self, episodes: np.ndarray, starts: np.ndarray, context: int) -> UInt8[Tensor, "B T ..."]:
        if self._packed is None:
            return torch.empty(len(episodes), context, 0, 0, 0, dtype=torch.uint8)
        frames = self._borrow((len(episodes), context, *FRAME_SHAPE), torch.uint8)
        out = frames.numpy()
        for index, (episode, start) in enumerate(zip(episodes.tolist(), starts.tolist(), strict=True)):
            count = min(context, int(self.steps[episode]) - start)
            self._packed[self._shard[episode]].read(int(self._in_shard[episode]), start, out[index, :count])
            out[index, count:] = 0
        return frames

    def _read_features(self, episodes: np.ndarray, starts: np.ndarray, context: int) -> Shaped[Tensor, "B T *F"] | None:
        if self._features is None:
            return None
        like = self._features[0]
        features = self._borrow((len(episodes), context, *like.shape[1:]), like.dtype)
        for index, (episode, start) in enumerate(zip(episodes.tolist(), starts.tolist(), strict=True)):
            count, shard = min(context, int(self.steps[episode]) - start), int(self._shard[episode])
            row = int(self._row[episode] - self._shard_row[shard]) + start
            features[index, :count] = self._features[shard][row : row + count]
            features[index, count:] = 0
        return features

    def _borrow(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._memory.setdefault(shape, ReusedMemory(shape, dtype)).borrow()


def window_weights(steps: Int[np.ndarray, " E"], context: int) -> Int[np.ndarray, " E"]:
    """For each episode, `context` times the windows that `draw_windows` takes of it in a pass, on average."""
    whole = np.maximum(steps, context)
    return whole + np.minimum(whole - context, context - 1)


def draw_windows(
    steps: Int[np.ndarray, " E"], context: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """Episode and first step of the windows of one pass, in random order.

    An episode that is no longer than a window has one a pass, on average, which holds all of it. In a longer one all
    first steps are equally likely, but that the two outermost ones, which alone show the episode's first and last
    step, stand for as many more as it takes to show those steps as often as others: once a pass on average in an
    episode of two windows or more (then others near the ends are shown up to twice).
    """
    whole = np.maximum(steps, context)
    weights = window_weights(steps, context)
    ends = np.cumsum(weights)
    count = int(ends[-1]) // context
    places = ((np.arange(count) + rng.random(count)) * context).astype(np.int64)
    episodes = np.searchsorted(ends, places, side="right")
    last = (whole - context)[episodes]
    beyond = (weights[episodes] - (last + 1)) // 2
    starts = np.clip(places - (ends - weights)[episodes] - beyond, 0, last)
    order = rng.permutation(count)
    return episodes[order], starts[order]


def tile_windows(steps: Int[np.ndarray, " E"], context: int) -> tuple[Int64[np.ndarray, " W"], Int64[np.ndarray, " W"]]:
    """Episode and first step of windows that show every step once, in order."""
    counts = -(-steps // context)
    episodes = np.repeat(np.arange(len(steps)), counts)
    firsts = np.repeat(np.cumsum(counts) - counts, counts)
    return episodes, (np.arange(len(episodes)) - firsts) * context
