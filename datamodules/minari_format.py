"""Trajectories as Minari datasets (https://minari.farama.org), for exchange: needs the extra `minari`.

What the format carries: whole episodes with actions, rewards, ends and, as `infos`, all labels; the level seed is an
episode's `seed`. Minari's own HDF5 writer would store 64 x 64 x 3 frames as JPEG, which changes them (its reader takes
any uint8 box with sides of 32 or more for an image). So frames are exported as boxes of [4096, 3] pixels, gzipped,
which Minari's API reads as they are. What the format does not carry: Minari wants one observation more than actions,
but procgen never draws the frame after the last action; the last frame stands there again. And it reads whole
episodes, so it does not replace the shards that training reads windows from.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from tqdm import tqdm

from datamodules.frame_patches import FramePacker
from datamodules.recorder import Rows
from datamodules.trajectory_recorder import BLOCK_FRAMES, TRAJECTORY_LABELS, RecordedEpisode, episode_columns
from datamodules.trajectory_store import TrajectoryStore
from environments import FRAME_SHAPE, NUM_ACTIONS, EnvironmentSettings
from environments.heist import GEM_REWARD

_PIXELS = (FRAME_SHAPE[0] * FRAME_SHAPE[1], FRAME_SHAPE[2])
_CHUNK_FRAMES = 32
_UNKNOWN = -1


def export_minari(store: TrajectoryStore, folder: str | Path, settings: EnvironmentSettings, name: str) -> None:
    """Write all episodes of a store as a Minari dataset; `minari.MinariDataset(folder / "data")` reads it.

    Args:
        store: with frames, and with those labels that are to be exported.
        folder: of the dataset; it must not exist. It is written aside and put in its place when whole.
        settings: what was played, kept in the metadata.
        name: the dataset's id: `NAMESPACE/NAME-vVERSION`, as Minari wants it.

    Raises:
        ValueError: the extra `minari` is missing, the folder exists, or the id is malformed.
    """
    minari = _minari()
    import h5py
    from gymnasium import spaces
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage

    parse_dataset_id(name)
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists: delete it or export to another folder")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        partial / "data",
        observation_space=spaces.Box(0, 255, _PIXELS, np.uint8),
        action_space=spaces.Discrete(NUM_ACTIONS),
    )
    with h5py.File(partial / "data" / "main_data.hdf5", "a", track_order=True) as file:
        for index in tqdm(range(len(store)), desc=f"exporting {name}", unit=" episodes", mininterval=0.5):
            group = file.create_group(f"episode_{index}")
            columns = _episode(store, index)
            group.attrs.update(id=index, seed=int(store.level[index]), total_steps=int(store.steps[index]))
            for path, values in columns.items():
                frames = path == "observations"
                packing = {"compression": "gzip", "chunks": (min(len(values), _CHUNK_FRAMES), *_PIXELS)}
                group.create_dataset(path, data=values, **(packing if frames else {}))
    storage.update_metadata(
        {
            "dataset_id": name,
            "minari_version": minari.__version__,
            "total_episodes": len(store),
            "total_steps": int(store.steps.sum()),
            "dataset_size": storage.get_size(),
            "description": f"procgen {json.dumps(settings.as_dict())}; an episode's seed is its level; observations "
            "are 64 x 64 RGB pixels in rows, the last one of an episode repeats the one before",
        }
    )
    partial.rename(folder)


def _episode(store: TrajectoryStore, index: int) -> dict[str, Shaped[np.ndarray, "..."]]:
    """What is stored of an episode, by path in its group."""
    rows, steps = store.episode_rows(index), int(store.steps[index])
    frames = store.episode_frames(index).reshape(steps, *_PIXELS)
    last = np.arange(steps) == steps - 1
    infos = {f"infos/{name}": _with_last(values[rows]) for name, values in store.labels.items()}
    return {
        "observations": _with_last(frames),
        "actions": store.actions[rows].astype(np.int64),
        "rewards": np.where(last & store.solved[index], GEM_REWARD, 0.0),
        "terminations": last & ~store.cut[index],
        "truncations": last & store.cut[index],
        **infos,
    }


def _with_last(values: Shaped[np.ndarray, "L ..."]) -> Shaped[np.ndarray, "L1 ..."]:
    return np.concatenate([values, values[-1:]])


class MinariRecorder:
    """Episodes of a Minari dataset of heist as a recorder of trajectories; nothing is played.

    Observations may be frames or their pixels in rows. Labels are taken from the episodes' `infos` where these have
    them, and are -1 elsewhere (`position`: NaN): such episodes can be learnt from, but not be scored by the oracle.

    Args:
        folder: of the dataset, holding `data/`.
        settings: whose levels are taken; episodes of others are left out, those of held-out levels above all.
        frames: about how many are wanted.

    Raises:
        ValueError: the extra `minari` is missing, the folder holds no dataset, episodes do not tell their levels, or
            there are fewer frames than wanted.
    """

    taps: tuple[str, ...] = ()
    forks = False  # its files are read quickly enough

    def __init__(self, folder: str | Path, settings: EnvironmentSettings, frames: int) -> None:
        _minari()
        from minari.dataset.minari_storage import MinariStorage

        self._folder = Path(folder)
        try:
            self._storage = MinariStorage.read(self._folder / "data")
        except ValueError as error:
            raise ValueError(f"{folder} holds no Minari dataset ({error}): pass a folder that has data/") from error
        levels = range(settings.start_level, settings.start_level + settings.num_levels)
        self._blocks: list[list[int]] = []
        blocks = -(-frames // BLOCK_FRAMES)  # each needs an episode, even where those before overshot what was wanted
        found = 0
        for index, known in enumerate(self._storage.get_episode_metadata(range(self._storage.total_episodes))):
            if known.get("seed") is None:
                raise ValueError(
                    f"{folder}: episode {index} has no seed, so its level is not known to be none of those held out: "
                    "set each episode's level as its seed (MinariStorage.update_episode_metadata)"
                )
            if int(known["seed"]) in levels and (found < frames or len(self._blocks) < blocks):
                self._blocks += [[]] if found // BLOCK_FRAMES >= len(self._blocks) else []
                self._blocks[-1].append(index)
                found += int(known["total_steps"])
        if found < frames or len(self._blocks) < blocks:
            raise ValueError(
                f"{folder} has {found} frames of levels {levels.start} to {levels.stop - 1}, too few for {frames}: "
                "lower num_frames or that source's share"
            )
        self._settings = settings

    @property
    def frames_per_block(self) -> int:
        """About as many frames a block has: its episodes are whole."""
        return BLOCK_FRAMES

    def description(self) -> dict[str, Any]:
        """What tells this dataset from others: its files' names, sizes and times; and which levels are taken."""
        files = sorted(path for path in (self._folder / "data").iterdir() if path.is_file())
        return {
            "format": 1,
            "minari": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
            "levels": [self._settings.start_level, self._settings.num_levels],
            "block": BLOCK_FRAMES,
            "labels": TRAJECTORY_LABELS,
        }

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        """Read block `index`; arguments as of `TrajectoryRecorder.block`."""
        left = self.frames_per_block if frames is None else frames
        episodes = []
        for episode in self._read(self._blocks[index]):
            episodes.append(episode)
            if progress is not None:
                progress(min(left, len(episode.actions)))
                left -= min(left, len(episode.actions))
        if progress is not None:
            progress(left)
        return episode_columns(episodes)

    def _read(self, indices: list[int]) -> Iterator[RecordedEpisode]:
        metadata = self._storage.get_episode_metadata(indices)
        for known, data in zip(metadata, self._storage.get_episodes(indices), strict=True):
            where = f"{self._folder}: episode {data['id']}"
            actions, rewards = np.asarray(data["actions"]), np.asarray(data["rewards"])
            frames = _frames(data["observations"], where)
            steps = len(actions)
            fits = actions.ndim == 1 and 0 < steps == len(frames) - 1
            if not fits or not 0 <= actions.min() <= actions.max() < NUM_ACTIONS:
                raise ValueError(f"{where} has no {NUM_ACTIONS} discrete actions, one fewer than observations")
            if rewards[:-1].any():
                raise ValueError(f"{where} earns a reward before its last step: only heist's episodes can be read")
            packer = FramePacker(frames[0])
            for frame in frames[:-1]:
                packer.add(frame)
            packer.close()
            labels = zip(*_labels(data["infos"] or {}, steps), strict=True)
            solved, cut = bool(rewards[-1] > 0), not data["terminations"][-1]
            yield RecordedEpisode(int(known["seed"]), packer, actions.tolist(), list(labels), solved, cut)

    def frame_bytes(self) -> int:
        """Bytes that a frame takes on average, found by reading an episode."""
        rows = episode_columns(list(self._read(self._blocks[0][:1])))
        return -(-sum(column.nbytes for column in rows.values()) // len(rows["actions"]))

    def close(self) -> None:
        """Nothing is held open."""


def _frames(observations: Any, where: str) -> UInt8[np.ndarray, "L 64 64 3"]:
    frames = np.asarray(observations)
    if frames.dtype != np.uint8 or frames.shape[1:] not in (FRAME_SHAPE, _PIXELS):
        raise ValueError(
            f"{where} has observations of {frames.dtype} {frames.shape[1:]}, not frames of uint8 {FRAME_SHAPE}"
        )
    return frames.reshape(-1, *FRAME_SHAPE)


def _labels(infos: Mapping[str, Any], steps: int) -> list[Shaped[np.ndarray, "L ..."]]:
    """Each label of `TRAJECTORY_LABELS` for every step."""
    shapes = {"cells": (8, 2), "position": (2,), "held": (3,), "target_cell": (2,)}
    found = []
    for name in TRAJECTORY_LABELS:
        shape = (steps, *shapes.get(name, ()))
        values = np.asarray(infos.get(name, np.zeros(0)))[:steps]
        if values.shape != shape:
            values = np.full(shape, np.nan if name == "position" else _UNKNOWN)
        found.append(values)
    return found


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise ValueError(f"Minari datasets need the extra: pip install 'procgen-lens[minari]' ({error})") from error
    return minari
