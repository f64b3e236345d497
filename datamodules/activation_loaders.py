"""One batch type of activations and the three loaders that yield it whole: cached, streamed, and for validation."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from datamodules.cache import ActivationCache
from datamodules.recorder import Recorder, Rows
from datamodules.reused_memory import ReusedMemory

_RUNS = 4  # places of the cache that one batch mixes, at most: rows of a place are strangers already
_APART = 8  # batches between two that share places, at most
_GROUP_BYTES = 2**23  # of batches read together: each place in one piece, into memory that is used again
_MANY_FRAMES, _MANY_LEVELS = 50_000, 1_000  # what dead latents are to be counted over
_POOL_BLOCKS = 4  # recorded blocks that the stream mixes


@dataclass
class ActivationBatch:
    """R rows: positions of frames, or whole frames.

    Attributes:
        activations: by tap, in the type and with the values that the agent yields: [R C] for positions and flat taps,
            [R C H W] (channels last in memory) for whole maps.
        levels: level seed of each row.
        frames: what the agent saw.
        labels: by name, `datamodules.recorder.LABELS`.
        inside: by tap with a map, whether a position shows the maze: [R H W], or [R] for positions.
    """

    activations: dict[str, Shaped[Tensor, "R C *HW"]]
    levels: Int[Tensor, " R"]
    frames: UInt8[Tensor, "R 64 64 3"] | None = None
    labels: dict[str, Shaped[Tensor, "R ..."]] | None = None
    inside: dict[str, Bool[Tensor, "R *HW"]] | None = None

    def __len__(self) -> int:
        return len(self.levels)

    @classmethod
    def from_rows(cls, rows: Rows) -> "ActivationBatch":
        """Sort columns into a batch without copying."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, column in rows.items():
            group, slash, key = name.partition("/")
            if slash:
                groups.setdefault(group, {})[key] = column.permute(0, 3, 1, 2) if column.ndim == 4 else column
        return cls(
            groups["activations"], rows["levels"], rows.get("frames"), groups.get("labels"), groups.get("inside")
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ActivationBatch":
        """The same batch on another device; to a GPU by way of pinned memory, so that nobody waits for it."""
        pinned = torch.device(device).type == "cuda"

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(tensor) for key, tensor in value.items()}
            if value is None:
                return None
            if pinned and value.device.type == "cpu":
                return value.pin_memory().to(device, non_blocking=True)
            return value.to(device, non_blocking=non_blocking)

        return ActivationBatch(**{field.name: move(getattr(self, field.name)) for field in fields(self)})


@dataclass
class Position:
    """Where training stands: what a checkpoint keeps of a loader.

    Attributes:
        epoch: passes begun before this one.
        batch: batches of this epoch already handed out on each rank.
        block: next block that the stream records.
    """

    epoch: int = 0
    batch: int = 0
    block: int = 1

    def advance(self, batches: int, again: bool = False) -> None:
        """Count one batch of an epoch of so many; before it is yielded, for nothing may run after the last one.

        Args:
            batches: of the epoch.
            again: the next epoch is this one again.
        """
        self.batch += 1
        if self.batch >= batches:
            self.epoch, self.batch = self.epoch + (not again), 0


class TrainingLoader:
    """What the loaders of training data share: a length, and a position that survives a checkpoint.

    `__iter__` goes on at the position, so an iterator dropped halfway leaves its rest to the next one.
    """

    def __init__(self, position: Position, batches: int) -> None:
        self._position, self._batches = position, batches
        self._last, self._again = batches, False
        self._fit_in()

    def __len__(self) -> int:
        return self._batches

    def limited(self, trainer: Trainer | None) -> Self:
        """End epochs where a Trainer's `limit_train_batches` does, so that every epoch has as many batches.

        Under `overfit_batches` every epoch has the same ones (but of a stream, which is always fresh).
        """
        if trainer is not None:
            limit = trainer.limit_train_batches
            many = min(limit, self._batches) if isinstance(limit, int) else int(limit * self._batches)
            self._last, self._again = max(1, many), trainer.overfit_batches > 0  # type: ignore[attr-defined]
            self._fit_in()
        return self

    def _advance(self) -> None:
        self._position.advance(self._last, self._again)

    def _fit_in(self) -> None:
        if self._position.batch >= self._last:  # of a longer epoch, before a resume
            self._position.batch = 0

    def state_dict(self) -> dict[str, int]:
        """Empty: the data module keeps the position, for Lightning restores a loader in mid-epoch only.

        Being stateful tells Lightning that this loader goes on where a checkpoint was written.
        """
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load: see `state_dict`."""


class CacheLoader(TrainingLoader):
    """Shuffled whole batches from shards whose rows are already in random order.

    A batch is made of runs of rows from up to 4 random places of the cache. Batches are read in groups (8 MB): each
    place of a group is read in one contiguous piece and shared out over batches that stand 8 apart, so that
    neighbours come from different places. The places are drawn anew in each epoch from (seed, epoch) alone. What
    does not fill a group is left out, another part in each epoch. Ranks take every world-th group.

    Raises:
        ValueError: too few rows for one batch.
    """

    def __init__(
        self, shards: list[Rows], batch_size: int, *, seed: int, position: Position, rank: int = 0, world: int = 1
    ) -> None:
        columns = {name: column for name, column in shards[0].items() if not name.startswith("sums/")}
        self._bytes = {name: [_as_bytes(shard[name]) for shard in shards] for name in columns}
        self._rows = [len(shard["levels"]) for shard in shards]
        self._seed, self._rank, self._world = seed, rank, world
        self._runs = math.gcd(batch_size, _RUNS)
        self._run = batch_size // self._runs
        row_bytes = sum(parts[0].shape[1] for parts in self._bytes.values())
        # Never more than a 32nd of the data in one group: its last one may be left out.
        group = min(_GROUP_BYTES // (row_bytes * batch_size), sum(self._rows) // (32 * batch_size * world))
        self._apart = max(1, min(_APART, group))
        self._sharing = max(1, min(group // self._apart, max(self._rows) // self._run))
        self._piece = self._run * self._sharing
        rows = self._apart * self._sharing * batch_size
        self._memory = {name: ReusedMemory((rows, *like.shape[1:]), like.dtype) for name, like in columns.items()}
        pieces = sum(rows // self._piece for rows in self._rows)
        self._groups = pieces // (self._runs * self._apart * world)
        if self._groups == 0:
            raise ValueError(
                f"{sum(self._rows)} rows are too few for a batch of {batch_size} on each of {world} processes: "
                "raise num_frames or lower batch_size"
            )
        super().__init__(position, self._groups * self._apart * self._sharing)

    def __iter__(self) -> Iterator[ActivationBatch]:
        places = self._places(self._position.epoch)
        count = self._runs * self._apart
        first, skip = divmod(self._position.batch, self._apart * self._sharing)
        for group in range(first, self._groups):
            start = (group * self._world + self._rank) * count
            for batch in self._read(places[start : start + count])[skip:]:
                self._advance()
                yield batch
            skip = 0

    def _places(self, epoch: int) -> Int[np.ndarray, "places 2"]:
        """(shard, first row) of every piece of this epoch, in random order."""
        rng = np.random.default_rng((self._seed, epoch))
        places = []
        for shard, rows in enumerate(self._rows):
            starts = rng.integers(rows % self._piece + 1) + np.arange(rows // self._piece) * self._piece
            places.append(np.stack([np.full_like(starts, shard), starts], 1))
        return rng.permutation(np.concatenate(places))

    def _read(self, places: Int[np.ndarray, "places 2"]) -> list[ActivationBatch]:
        batches = self._sharing * self._apart
        columns = []
        for name, memory in self._memory.items():
            column = memory.borrow()
            target = _as_bytes(column).reshape(self._sharing, len(places), -1)
            # numpy copies such pieces at a fraction of torch's cost for each call
            for place, (shard, start) in enumerate(places.tolist()):
                piece = self._bytes[name][shard][start : start + self._piece]
                target[:, place] = piece.reshape(self._sharing, -1)
            columns.append(column.unflatten(0, (batches, -1)).unbind())
        return [
            ActivationBatch.from_rows(dict(zip(self._memory, parts, strict=True)))
            for parts in zip(*columns, strict=True)
        ]


def _as_bytes(column: Shaped[Tensor, "R ..."]) -> UInt8[np.ndarray, "R bytes"]:
    """The same memory, a row of bytes for each row."""
    return column.reshape(len(column), -1).view(torch.uint8).numpy()


class StreamLoader(TrainingLoader):
    """Batches from play that goes on while training: fresh frames in every epoch, nothing on disk.

    A pool holds the rows of 4 blocks. Once a block's worth of random rows has been handed out, a new block takes their
    place. After a resume the pool is filled anew from the next block that was not yet recorded.

    Args:
        first: block 0, which every rank has recorded for the statistics.

    Raises:
        ValueError: a batch larger than a block, or an epoch smaller than a batch.
    """

    def __init__(
        self,
        recorder: Recorder,
        first: Rows,
        frames: int,
        batch_size: int,
        *,
        seed: int,
        position: Position,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._recorder, self._first = recorder, first
        self._batch_size, self._seed, self._rank, self._world = batch_size, seed, rank, world
        block = len(first["levels"])
        batches = frames * recorder.rows_per_frame // (batch_size * world)
        if batch_size > block or batches == 0:
            raise ValueError(
                f"batch_size {batch_size} is more than the {block} rows of a recorded block or than an epoch's "
                f"{frames * recorder.rows_per_frame} rows over {world} processes: lower it, or raise "
                "play.environments, play.steps or num_frames"
            )
        super().__init__(position, batches)
        self._mixed = self._mix()

    def __iter__(self) -> Iterator[ActivationBatch]:
        for _ in range(self._position.batch, len(self)):
            batch = next(self._mixed)
            self._advance()
            yield batch

    def _record(self) -> Rows:
        """This rank's next block; ranks take turns, and block 0 belongs to the statistics."""
        index = 1 + (self._position.block - 1) * self._world + self._rank
        self._position.block += 1
        return self._recorder.block(index)

    def _mix(self) -> Iterator[ActivationBatch]:
        blocks = [self._first, *(self._record() for _ in range(_POOL_BLOCKS - 1))]
        rng = np.random.default_rng((self._seed, self._rank, self._position.block))
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        pool = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        size = len(blocks[0]["levels"])
        del blocks
        while True:
            chosen = torch.randperm(_POOL_BLOCKS * size, generator=noise)[:size]
            for rows in chosen.split(self._batch_size):
                if len(rows) == self._batch_size:
                    yield ActivationBatch.from_rows({name: column[rows] for name, column in pool.items()})
            for name, column in self._record().items():
                pool[name][chosen] = column


class ValidationLoader:
    """Every row of a cache once and in order, in batches shared out over ranks; recorded when first iterated.

    Maps are not copied: tensors are the mapped file, so write to none of them in place.
    """

    def __init__(self, cache: ActivationCache, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self._cache, self._batch_size, self._rank, self._world = cache, batch_size, rank, world
        self._shards: list[Rows] | None = None

    def __len__(self) -> int:
        batches = sum(-(-frames // self._batch_size) for frames in self._cache.shard_frames)
        return len(range(self._rank, batches, self._world))

    def __iter__(self) -> Iterator[ActivationBatch]:
        if self._shards is None:
            self._shards = self._open()
        places = [
            (shard, start)
            for shard, frames in enumerate(self._cache.shard_frames)
            for start in range(0, frames, self._batch_size)
        ]
        for shard, start in places[self._rank :: self._world]:
            rows = {
                name: column[start : start + self._batch_size]
                for name, column in self._shards[shard].items()
                if not name.startswith("sums/")
            }
            yield ActivationBatch.from_rows(rows)

    def _open(self) -> list[Rows]:
        self._cache.build()
        shards = self._cache.open()
        levels = len(torch.cat([shard["levels"] for shard in shards]).unique())
        rank_zero_info(f"validating on {self._cache.frames} frames of {levels} levels")
        if self._cache.frames >= _MANY_FRAMES and levels < _MANY_LEVELS:
            rank_zero_warn(
                f"{self._cache.frames} validation frames show {levels} levels only, for this agent finishes few: "
                "lower play.steps, so that the play of stuck ones ends sooner"
            )
        return shards
