import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import TrajectoryDataModule, TrajectorySource, minari_format
from datamodules.minari_format import MinariRecorder, export_minari
from datamodules.trajectory_recorder import TRAJECTORY_LABELS
from datamodules.trajectory_store import TrajectoryStore
from environments import EnvironmentSettings

minari = pytest.importorskip("minari", reason="the extra minari is not installed")
h5py = pytest.importorskip("h5py")
spaces = pytest.importorskip("gymnasium").spaces

EASY = EnvironmentSettings(num_threads=0)
ORACLE = TrajectorySource("oracle", "oracle", share=1.0)


def data(folder: Path, sources: list[TrajectorySource], **changes: Any) -> TrajectoryDataModule:
    arguments = {"num_frames": 600, "validation_frames": 100, "context": 10, "batch_size": 4, "max_steps": 50}
    return TrajectoryDataModule(
        sources, EASY, **(arguments | changes), labels=TRAJECTORY_LABELS, cache_dir=str(folder / "cache")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("minari")


@pytest.fixture(scope="module")
def recorded(folder: Path) -> TrajectoryStore:
    return data(folder, [ORACLE, TrajectorySource("random", "random", hold=4)]).store("train")


@pytest.fixture(scope="module")
def exported(folder: Path, recorded: TrajectoryStore) -> Path:
    export_minari(recorded, folder / "exported", EASY, "procgen/heist-v0")
    return folder / "exported"


def test_minari_reads_what_was_exported(recorded: TrajectoryStore, exported: Path) -> None:
    dataset = minari.MinariDataset(exported / "data")
    assert dataset.spec.dataset_id == "procgen/heist-v0"
    assert dataset.total_episodes == len(recorded)
    assert dataset.total_steps == recorded.steps.sum()
    assert recorded.solved.any()
    assert recorded.cut.any()
    for index, episode in enumerate(dataset.iterate_episodes()):
        frames = recorded.episode_frames(index)
        np.testing.assert_array_equal(episode.observations[:-1].reshape(frames.shape), frames)
        np.testing.assert_array_equal(episode.observations[-1], episode.observations[-2])
        np.testing.assert_array_equal(episode.actions, recorded.actions[recorded.episode_rows(index)])
        assert episode.rewards.tolist() == [0.0] * (len(frames) - 1) + [10.0 * recorded.solved[index]]
        assert episode.terminations[-1] == (not recorded.cut[index])
        assert episode.truncations[-1] == recorded.cut[index]
        assert not episode.terminations[:-1].any()
    seeds = [metadata["seed"] for metadata in dataset.storage.get_episode_metadata(range(len(recorded)))]
    assert seeds == recorded.level.tolist()


def test_what_was_exported_comes_back_as_it_was(folder: Path, recorded: TrajectoryStore, exported: Path) -> None:
    frames = int(recorded.steps.sum())
    made = data(folder, [TrajectorySource("imported", str(exported), 1.0), ORACLE], num_frames=2 * frames)
    store = made.store("train")
    mine = np.flatnonzero(store.source == 0)
    assert len(mine) == len(recorded)
    for name in ("level", "steps", "solved", "cut"):
        np.testing.assert_array_equal(getattr(store, name)[mine], getattr(recorded, name))
    for index in mine.tolist():
        rows = store.episode_rows(index)
        np.testing.assert_array_equal(store.episode_frames(index), recorded.episode_frames(index))
        for values, kept in ((store.actions, recorded.actions), (store.returns, recorded.returns)):
            np.testing.assert_array_equal(values[rows], kept[rows])
        for name in TRAJECTORY_LABELS:
            np.testing.assert_array_equal(store.labels[name][rows], recorded.labels[name][rows], err_msg=name)
    held_out = made.store("validation")
    assert set(held_out.source.tolist()) == {1}
    assert made.counts("validation")[0].episodes == 0


def test_pictures_of_others_are_read_and_labels_that_are_missing_are_unknown(tmp_path: Path) -> None:
    """Written by Minari itself, which turns frames into JPEG: they come back near, not equal."""
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    (tmp_path / "data").mkdir()
    box = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    storage = MinariStorage.new(tmp_path / "data", box, spaces.Discrete(15))
    frames = np.linspace(0, 200, 4 * 64 * 64 * 3).astype(np.uint8).reshape(4, 64, 64, 3)
    ends = [False, False, True]
    for seed in (200_000, 7):
        storage.update_episodes(
            [EpisodeBuffer(None, seed, None, frames, np.array([1, 2, 3]), [0.0, 0.0, 10.0], ends, [False] * 3)]
        )
    rows = MinariRecorder(tmp_path, EASY, 3).block(0)
    store = TrajectoryStore([rows], [0], discount=0.5, labels=TRAJECTORY_LABELS)
    assert store.level.tolist() == [200_000]  # the other one is held out
    assert np.abs(store.episode_frames(0).astype(int) - frames[:3]).max() < 20
    assert store.actions.tolist() == [1, 2, 3]
    assert store.returns.tolist() == [1.25, 2.5, 5.0]
    assert (store.labels["direction"] == -1).all()
    assert np.isnan(store.labels["position"]).all()
    with pytest.raises(ValueError, match=r"has 3 frames of levels 100000 to .*, too few for 4"):
        MinariRecorder(tmp_path, EASY, 4)


def test_every_block_has_an_episode(recorded: TrajectoryStore, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the first block's last episode alone brings all that was wanted."""
    tenth = int(recorded.steps[:10].sum())
    monkeypatch.setattr(minari_format, "BLOCK_FRAMES", tenth - 1)
    made = MinariRecorder(exported, EASY, tenth)
    first, second = made.block(0), made.block(1)
    assert first["episodes/level"].tolist() == recorded.level[:10].tolist()
    assert second["episodes/level"].tolist() == recorded.level[10:11].tolist()


def test_episodes_that_do_not_tell_their_level_are_refused(tmp_path: Path, exported: Path) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    with h5py.File(tmp_path / "copy" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"].attrs["seed"]
    with pytest.raises(ValueError, match="episode 1 has no seed"):
        MinariRecorder(tmp_path / "copy", EASY, 10)


def test_what_cannot_be_is_refused(tmp_path: Path, recorded: TrajectoryStore, exported: Path) -> None:
    with pytest.raises(ValueError, match="exists: delete it"):
        export_minari(recorded, exported, EASY, "procgen/heist-v0")
    with pytest.raises(ValueError, match="holds no Minari dataset"):
        MinariRecorder(tmp_path, EASY, 10)
    with pytest.raises(ValueError, match="that plays"):
        data(tmp_path, [TrajectorySource("imported", str(exported))])
