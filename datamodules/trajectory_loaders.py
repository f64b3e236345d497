"""Windows of trajectories in batches: shuffled for training, in order for validation."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.activation_loaders import Position, TrainingLoader
from datamodules.trajectory_store import TrajectoryBatch, TrajectoryStore, draw_windows, tile_windows, window_weights

_Places = tuple[np.ndarray, np.ndarray]


class _Windows(Dataset[TrajectoryBatch]):
    """A whole batch for each item asked for."""

    def __init__(self, store: TrajectoryStore, context: int) -> None:
        self._store, self._context = store, context

    def __getitem__(self, places: _Places) -> TrajectoryBatch:
        return self._store.windows(*places, self._context)


def _read(store: TrajectoryStore, context: int, batches: list[_Places], num_workers: int) -> Iterator[TrajectoryBatch]:
    """Batches in the order of their places, whoever reads them."""
    loader: DataLoader[TrajectoryBatch] = DataLoader(
        _Windows(store, context),
        sampler=batches,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


class TrajectoryLoader(TrainingLoader):
    """Shuffled whole batches of windows, drawn anew in each epoch from (seed, epoch) alone; see `draw_windows`.

    What does not fill a batch on every rank is left out, other windows in each epoch.

    Raises:
        ValueError: too few steps for one batch.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        context: int,
        batch_size: int,
        *,
        seed: int,
        position: Position,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._store, self._context, self._batch_size, self._seed = store, context, batch_size, seed
        self._num_workers, self._rank, self._world = num_workers, rank, world
        windows = int(window_weights(store.steps, context).sum()) // context
        batches = windows // (batch_size * world)
        if batches == 0:
            raise ValueError(
                f"{windows} windows of {context} steps are too few for a batch of {batch_size} on each of {world} "
                "processes: raise num_frames or lower batch_size"
            )
        super().__init__(position, batches)

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        rng = np.random.default_rng((self._seed, self._position.epoch))
        shape = (len(self), self._world, self._batch_size)
        used = len(self) * self._world * self._batch_size
        episodes, starts = (
            places[:used].reshape(shape)[self._position.batch :, self._rank]
            for places in draw_windows(self._store.steps, self._context, rng)
        )
        batches = list(zip(episodes, starts, strict=True))
        for batch in _read(self._store, self._context, batches, self._num_workers):
            self._advance()
            yield batch


class OrderedTrajectoryLoader:
    """Windows that show every step once, in order, in batches shared out over ranks; the last may be smaller.

    Raises:
        ValueError: fewer batches than ranks: one without any would leave the others waiting for its metrics.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        context: int,
        batch_size: int,
        *,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._store, self._context, self._num_workers = store, context, num_workers
        episodes, starts = tile_windows(store.steps, context)
        cuts = range(batch_size, len(episodes), batch_size)
        parts = zip(np.split(episodes, cuts), np.split(starts, cuts), strict=True)
        batches: list[_Places] = list(parts)
        if len(batches) < world:
            raise ValueError(
                f"{len(episodes)} windows of {context} steps make {len(batches)} batches of {batch_size}, fewer than "
                f"the {world} processes: raise validation_frames or lower validation_batch_size"
            )
        self._batches = batches[rank::world]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TrajectoryBatch]:
        return _read(self._store, self._context, self._batches, self._num_workers)
