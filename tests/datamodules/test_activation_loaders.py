from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.activation_loaders import ActivationBatch, CacheLoader, Position, StreamLoader, ValidationLoader
from datamodules.cache import ActivationCache
from datamodules.recorder import Rows

SHARD_LEVELS = 50


def shard(index: int, rows: int = 4_096) -> Rows:
    """Rows that carry their own number, of levels that no other shard has, in random order."""
    rng = np.random.default_rng(index)
    numbers = rng.permutation(rows)
    acts = np.stack([np.full(rows, index), numbers // 64, numbers % 64], 1)
    return {
        "activations/conv4a": torch.from_numpy(acts).float(),
        "levels": torch.from_numpy((index * SHARD_LEVELS + numbers % SHARD_LEVELS).astype(np.int32)),
        "sums/conv4a": torch.zeros(2, 3, dtype=torch.float64),
    }


def numbers(batch: ActivationBatch) -> list[int]:
    acts = batch.activations["conv4a"].long()
    return (acts[:, 0] * 1_000_000 + acts[:, 1] * 64 + acts[:, 2]).tolist()


def loader(batch_size: int = 64, position: Position | None = None, shards: int = 12, **changes: int) -> CacheLoader:
    made = [shard(index) for index in range(shards)]
    return CacheLoader(made, batch_size, position=position or Position(), **{"seed": 0, **changes})


def test_an_epoch_is_whole_batches_and_every_row_at_most_once() -> None:
    made = loader()
    batches = list(made)
    assert len(batches) == len(made)
    assert {len(batch) for batch in batches} == {64}
    counts = Counter(number for batch in batches for number in numbers(batch))
    assert set(counts.values()) == {1}
    assert len(counts) > 0.95 * 12 * 4_096
    assert batches[0].frames is batches[0].labels is batches[0].inside is None


def test_rows_keep_their_columns_together() -> None:
    levels = {number: level for b in loader() for number, level in zip(numbers(b), b.levels.tolist(), strict=True)}
    for index in (0, 7):
        rows = shard(index)
        batch = ActivationBatch.from_rows({name: rows[name] for name in ("activations/conv4a", "levels")})
        for number, level in zip(numbers(batch), batch.levels.tolist(), strict=True):
            assert levels.get(number, level) == level


class Seen(LightningModule):
    """Notes the rows of every batch, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[list[int]]] = {}

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> torch.Tensor:
        self.epochs.setdefault(self.current_epoch, []).append(numbers(batch))
        return self.weight * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def seen(folder: Path, epochs: int, made: CacheLoader, **changes: float) -> Seen:
    arguments: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    arguments |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": epochs}
    trainer = Trainer(default_root_dir=folder, **arguments | changes)
    module = Seen()
    trainer.fit(module, made.limited(trainer))
    return module


@pytest.mark.parametrize(("limit", "length"), [(30, 30), (0.25, 186), (1.0, 744), (5_000, 744)])
def test_every_epoch_ends_where_the_trainer_limits_it(tmp_path: Path, limit: float, length: int) -> None:
    made = loader()
    assert len(made) == 744
    epochs = seen(tmp_path, 3, made, limit_train_batches=limit).epochs
    assert [len(batches) for batches in epochs.values()] == [length] * 3
    assert epochs[0][:9] != epochs[1][:9] != epochs[2][:9], "each epoch is drawn anew"


def test_epochs_that_are_to_be_overfitted_are_the_same(tmp_path: Path) -> None:
    epochs = seen(tmp_path, 3, loader(), overfit_batches=2).epochs
    assert len(epochs[0]) == 2
    assert epochs[0] == epochs[1] == epochs[2]


def test_a_place_behind_the_end_of_an_epoch_that_became_shorter_begins_anew() -> None:
    made = loader(position=Position(batch=10_000))
    assert len(list(made)) == len(made)


def test_epochs_differ_and_repeat_by_seed() -> None:
    made = loader()
    first, second = ([numbers(batch) for batch in made] for _ in range(2))
    assert first != second
    assert first == [numbers(batch) for batch in loader()]
    assert second == [numbers(batch) for batch in loader(position=Position(epoch=1))]
    assert first != [numbers(batch) for batch in loader(seed=1)]


@pytest.mark.parametrize("stop", [1, 3, 50])
def test_training_goes_on_within_an_epoch(stop: int) -> None:
    whole = [numbers(batch) for batch in loader()]
    position = Position()
    iterator = iter(loader(position=position))
    for _ in range(stop):
        next(iterator)
    saved = dict(vars(position))
    assert whole[stop:] == [numbers(batch) for batch in loader(position=Position(**saved))]


def test_the_last_batch_already_points_to_the_next_epoch() -> None:
    position = Position()
    made = loader(position=position)
    iterator = iter(made)
    for _ in range(len(made)):
        next(iterator)
    assert (position.epoch, position.batch) == (1, 0)


def test_ranks_share_an_epoch_without_overlap() -> None:
    parts = [loader(rank=rank, world=3) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    seen = [{number for batch in part for number in numbers(batch)} for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert len(set.union(*seen)) > 0.9 * 12 * 4_096


def test_neighbouring_batches_share_no_more_levels_than_distant_ones() -> None:
    batches = [set(batch.levels.tolist()) for batch in loader(batch_size=256)]
    assert np.mean([len(batch) for batch in batches]) > 120  # of the 200 of four shards, from 256 rows

    def shared(gap: int) -> float:
        pairs = [len(a & b) / len(a | b) for a, b in zip(batches, batches[gap:], strict=False)]
        return float(np.mean(pairs))

    distant = np.mean([shared(gap) for gap in (40, 60, 80)])
    assert shared(1) < 1.5 * distant


def test_memory_is_used_again_once_no_batch_looks_at_it() -> None:
    places = set()
    for batch in (made := loader()):
        places.add(batch.activations["conv4a"].untyped_storage().data_ptr())
    assert len(places) <= 3
    kept = [batch.activations["conv4a"][:1] for batch in made]  # a part of a batch holds all of its memory
    before = [part.clone() for part in kept]
    list(made)
    assert all(torch.equal(one, other) for one, other in zip(kept, before, strict=True))


def test_whole_maps_come_channels_last_and_frames_beside_them() -> None:
    rows = {
        "activations/conv4a": torch.randn(64, 8, 8, 32).bfloat16(),
        "inside/conv4a": torch.rand(64, 8, 8) > 0.5,
        "labels/target": torch.arange(64),
        "frames": torch.zeros(64, 64, 64, 3, dtype=torch.uint8),
        "levels": torch.arange(64, dtype=torch.int32),
    }
    for batch in CacheLoader([rows], 16, seed=0, position=Position()):
        acts = batch.activations["conv4a"]
        assert acts.shape == (16, 32, 8, 8)
        assert acts.is_contiguous(memory_format=torch.channels_last)
        assert batch.frames is not None
        assert batch.labels is not None
        assert batch.inside is not None
        assert batch.frames.shape == (16, 64, 64, 3)
        order = batch.labels["target"]
        assert torch.equal(acts.permute(0, 2, 3, 1), rows["activations/conv4a"][order])
        assert torch.equal(batch.inside["conv4a"], rows["inside/conv4a"][order])
        moved = batch.to("meta")
        assert moved.inside is not None
        assert moved.inside["conv4a"].is_meta


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="raise num_frames or lower batch_size"):
        loader(batch_size=8_192, shards=1)
    with pytest.raises(ValueError, match="each of 13 processes"):
        loader(batch_size=4_096, world=13)


class ToyRecorder:
    taps = ("conv4a",)
    frames_per_block = 64
    forks = False
    rows_per_frame = 64

    def __init__(self) -> None:
        self.made: list[int] = []

    def description(self) -> dict[str, int]:
        return {}

    def frame_bytes(self) -> int:
        return 1

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        self.made.append(index)
        rows = shard(index, (frames or self.frames_per_block) * self.rows_per_frame)
        del rows["sums/conv4a"]
        return rows

    def close(self) -> None: ...


def stream(position: Position | None = None, batch_size: int = 256, frames: int = 640, **changes: int) -> StreamLoader:
    recorder = ToyRecorder()
    arguments = {"seed": 0, **changes}
    first = recorder.block(0)
    return StreamLoader(
        recorder,
        first,
        frames,
        batch_size,
        position=position or Position(),
        **arguments,  # type: ignore[arg-type]
    )


def test_the_stream_mixes_blocks_and_never_repeats_a_row() -> None:
    made = stream()
    assert len(made) == 160
    epochs = [list(made) for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [160, 160]
    counts = Counter(number for epoch in epochs for batch in epoch for number in numbers(batch))
    assert set(counts.values()) == {1}
    for batch in epochs[1]:
        assert len({number // 1_000_000 for number in numbers(batch)}) >= 4


def test_the_stream_shows_every_level_in_its_share() -> None:
    """Rows of a level, the frames of one episode, do not come together: neighbours are as unlike as other batches."""
    made = stream(frames=64 * 64)
    batches = list(made)[:16]  # from one and the same pool of four blocks, with 200 levels
    counts = [np.bincount(batch.levels.numpy(), minlength=4 * SHARD_LEVELS) for batch in batches]
    fair = 256 / (4 * SHARD_LEVELS)
    assert max(count.max() for count in counts) < fair + 8 * np.sqrt(fair)  # 1.28 expected of a batch of 256

    def likeness(gap: int) -> float:
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(counts, counts[gap:], strict=False)]))

    assert abs(likeness(1)) < 0.15
    assert abs(likeness(1) - likeness(5)) < 0.15


def test_a_resumed_stream_records_fresh_blocks() -> None:
    position = Position()
    before = {n for batch in stream(position) for n in numbers(batch)}
    after = {n for batch in stream(Position(**vars(position))) for n in numbers(batch) if n >= 1_000_000}
    assert not before & after


def test_streams_of_two_ranks_record_different_blocks() -> None:
    parts = [{n for b in stream(rank=rank, world=2) for n in numbers(b) if n >= 1_000_000} for rank in range(2)]
    assert not parts[0] & parts[1]


def test_a_stream_batch_larger_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="lower it"):
        stream(batch_size=8_192)
    with pytest.raises(ValueError, match="lower it"):
        stream(frames=1)


def test_validation_shows_every_row_once_and_records_at_first_use(tmp_path: Path) -> None:
    recorder = ToyRecorder()
    cache = ActivationCache(tmp_path, "validation", recorder, 150)  # type: ignore[arg-type]
    recorder.rows_per_frame = 1
    parts = [ValidationLoader(cache, 20, rank=rank, world=2) for rank in range(2)]
    assert recorder.made == []
    seen: list[int] = []
    for part in parts:
        batches = list(part)
        assert len(batches) == len(part)
        seen += [number for batch in batches for number in numbers(batch)]
    assert len(seen) == len(set(seen)) == 150
    assert recorder.made == [0, 1, 2]
