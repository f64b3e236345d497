import numpy as np
import pytest
import torch

from datamodules import TrajectorySource
from datamodules.recorder import Rows
from datamodules.trajectory_recorder import TrajectoryRecorder
from datamodules.trajectory_store import TrajectoryStore, draw_windows, returns_to_go, tile_windows, window_weights
from environments import EnvironmentSettings

LABELS = ("direction", "cells", "position", "stuck", "source")


@pytest.fixture(scope="module")
def shards() -> list[Rows]:
    made = []
    for name in ("oracle", "random"):
        recorder = TrajectoryRecorder(
            TrajectorySource(name, name, hold=4), None, EnvironmentSettings(num_threads=0), max_steps=80
        )
        made.append(recorder.block(0, 600))
        recorder.close()
    return made


@pytest.fixture(scope="module")
def store(shards: list[Rows]) -> TrajectoryStore:
    features = [torch.randn(len(shard["actions"]), 3, 2).half() for shard in shards]
    return TrajectoryStore(shards, [0, 1], discount=0.9, labels=LABELS, features=features)


def test_returns_to_go_by_hand() -> None:
    found = returns_to_go(np.array([3, 2, 1]), np.array([True, False, True]), 0.5)
    np.testing.assert_allclose(found, [1.25, 2.5, 5.0, 0.0, 0.0, 5.0])
    assert found.dtype == np.float32
    # while playing, dividing by the discount leads from one step's to the next one's
    np.testing.assert_allclose(found[:2] / 0.5, found[1:3])


def test_windows_are_slices_of_episodes(store: TrajectoryStore, shards: list[Rows]) -> None:
    """Against a loop over the columns that knows nothing of windows."""
    rng = np.random.default_rng(0)
    context = 20
    episodes = rng.integers(len(store), size=24)
    starts = rng.integers(store.steps[episodes])
    batch = store.windows(episodes, starts, context)
    assert batch.window.mask.any(1).all()
    assert not batch.window.mask.all()
    base = np.concatenate([[0], np.cumsum([len(shard["episodes/steps"]) for shard in shards])])
    assert batch.features is not None
    for row, (episode, start) in enumerate(zip(episodes.tolist(), starts.tolist(), strict=True)):
        index = int(episode >= base[1])
        shard, inside = shards[index], episode - base[index]
        before = int(shard["episodes/steps"][:inside].sum())
        steps = int(shard["episodes/steps"][inside])
        count = min(context, steps - start)
        taken = slice(before + start, before + start + count)
        window = batch.window
        assert window.mask[row].tolist() == [True] * count + [False] * (context - count)
        assert window.timesteps[row].tolist() == [*range(start, start + count), *[0] * (context - count)]
        assert window.actions[row].tolist() == [*shard["actions"][taken].tolist(), *[0] * (context - count)]
        left = steps - np.arange(start, start + count)
        expected = 10 * 0.9**left * bool(shard["episodes/solved"][inside])
        np.testing.assert_allclose(window.returns_to_go[row, :count], expected, rtol=1e-5)
        assert not window.returns_to_go[row, count:].any()
        frames = store.episode_frames(episode)
        assert len(frames) == steps
        np.testing.assert_array_equal(window.frames[row, :count], frames[start : start + count])
        assert not window.frames[row, count:].any()
        for name in LABELS[:-1]:
            label, kept = batch.labels[name][row], shard[f"labels/{name}"][taken]
            assert torch.equal(label[:count], kept.to(label.dtype))
            assert (label[count:] == -1).all()
        assert batch.labels["source"][row].tolist() == [index] * count + [-1] * (context - count)
        assert store._features is not None
        assert torch.equal(batch.features[row, :count], store._features[index][taken])
        assert not batch.features[row, count:].any()
    assert batch.window.frames.dtype == torch.uint8
    assert batch.window.actions.dtype == batch.window.timesteps.dtype == batch.labels["stuck"].dtype == torch.int64
    assert batch.window.returns_to_go.dtype == batch.labels["position"].dtype == torch.float32


def test_memory_that_is_used_again_belongs_to_one_batch(store: TrajectoryStore) -> None:
    places = np.arange(4), np.zeros(4, dtype=np.int64)
    first = store.windows(*places, 10)
    kept = first.window.frames.clone()
    for _ in range(3):
        store.windows(np.arange(4, 8), np.zeros(4, dtype=np.int64), 10)
    assert torch.equal(first.window.frames, kept)


def test_frames_can_be_left_out(shards: list[Rows]) -> None:
    store = TrajectoryStore(shards, [0, 1], discount=0.9, labels=(), frames=False)
    batch = store.windows(np.array([0]), np.array([0]), 5)
    assert batch.window.frames.shape == (1, 5, 0, 0, 0)
    assert batch.features is None
    assert batch.labels == {}


def test_a_pass_shows_every_step_about_once() -> None:
    steps, context, passes = np.array([5, 10, 13, 47, 200]), 10, 600
    shown = [np.zeros(count) for count in steps]
    rng = np.random.default_rng(0)
    for _ in range(passes):
        episodes, starts = draw_windows(steps, context, rng)
        assert len(episodes) == window_weights(steps, context).sum() // context
        for episode, start in zip(episodes.tolist(), starts.tolist(), strict=True):
            assert 0 <= start <= max(0, steps[episode] - context)
            shown[episode][start : start + context] += 1 / passes
    for counts in shown[:2]:
        np.testing.assert_allclose(counts, 1, atol=0.15)
    assert (shown[2] > 0.5).all()
    assert (shown[2] < 1.8).all()
    for counts in shown[3:]:
        np.testing.assert_allclose(counts[[0, -1]], 1, atol=0.15)
        np.testing.assert_allclose(counts[context:-context], 1, atol=0.2)
        assert (counts > 0.8).all()
        assert (counts < 2.2).all()


def test_windows_of_a_pass_are_shuffled() -> None:
    episodes, _ = draw_windows(np.full(50, 100), 10, np.random.default_rng(0))
    assert (np.diff(episodes) < 0).mean() > 0.3


def test_ordered_windows_show_every_step_once() -> None:
    steps = np.array([5, 10, 47, 1])
    episodes, starts = tile_windows(steps, 10)
    shown = [
        (episode, step)
        for episode, start in zip(episodes.tolist(), starts.tolist(), strict=True)
        for step in range(start, min(start + 10, steps[episode]))
    ]
    assert shown == [(episode, step) for episode, count in enumerate(steps) for step in range(count)]
