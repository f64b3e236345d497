"""Recorded rows on disk: whole, checked shards that an interrupted build goes on from and a reader maps into memory."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from datamodules.block_jobs import run_jobs
from datamodules.recorder import Rows
from networks.files import flush, write_atomically

_MANIFEST = "manifest.json"
_RESERVE = 2**28  # bytes of disk left to others
_CHUNK_ROWS = 2**16


class Statistics(NamedTuple):
    """Moments of one tap over rows and space.

    Attributes:
        mean: per channel [C].
        std: root of the variance about the per-channel mean, averaged over channels.
    """

    mean: Float[Tensor, " C"]
    std: Float[Tensor, ""]


class BlockRecorder(Protocol):
    """What makes the rows of a cache, block by block: a recorder of play, edited states, episodes or features.

    Attributes:
        taps: what is recorded beside frames and labels.
        forks: whether blocks can be made in forked processes, which have no GPU, and change nothing here.
    """

    taps: tuple[str, ...]

    @property
    def forks(self) -> bool: ...

    @property
    def frames_per_block(self) -> int: ...

    def description(self) -> dict[str, Any]: ...

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows: ...

    def frame_bytes(self) -> int: ...

    def close(self) -> None: ...


class ActivationCache:
    """The rows of one recorder in a folder of shards, one shard for each of its blocks.

    The folder's name carries a hash of everything that decides the rows, so another agent, game, tap or seed never
    finds them; more frames of the same find the whole shards that are there. A shard is written aside, flushed, renamed
    and only then entered in the manifest with its size and SHA-256: what the manifest does not know is made anew, what
    does not match it is never read.

    Args:
        root: folder of all caches.
        name: what the rows are for, beginning the folder's name.
        recorder: makes the rows.
        frames: how many frames in all (about as many, where the recorder keeps episodes whole); the last shard may be
            smaller.
    """

    def __init__(self, root: str | Path, name: str, recorder: BlockRecorder, frames: int) -> None:
        self._recorder = recorder
        self._description = recorder.description()
        text = json.dumps(self._description, sort_keys=True)
        self.name, self.frames = name, frames
        self.folder = Path(root) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        block = recorder.frames_per_block
        counts = [min(block, frames - start) for start in range(0, frames, block)]
        self._shards = [
            (self.folder / f"shard-{index:05d}-{count}.safetensors", count) for index, count in enumerate(counts)
        ]
        self._checked: set[str] = set()

    @property
    def shard_frames(self) -> list[int]:
        """Frames of each shard."""
        return [frames for _, frames in self._shards]

    def missing(self) -> list[int]:
        """Shards that are not there or that no manifest vouches for."""
        known = self._read_manifest()
        return [index for index, (path, _) in enumerate(self._shards) if path.name not in known or not path.exists()]

    def missing_bytes(self) -> int:
        """Disk that building the missing shards takes."""
        missing = self.missing()
        return self._frame_bytes * sum(self._shards[index][1] for index in missing) if missing else 0

    @cached_property
    def _frame_bytes(self) -> int:
        return self._recorder.frame_bytes()

    def check(self) -> None:
        """Compare every finished shard with its checksum, once for each object.

        Raises:
            ValueError: names the shards that were cut short or altered, and the mend.
        """
        damaged = []
        known = self._read_manifest()
        for path, _ in self._shards:
            if path.name in known and path.name not in self._checked and path.exists():
                size, record = path.stat().st_size, known[path.name]
                if size != record["bytes"]:
                    damaged.append(f"{path} ({size} of {record['bytes']} bytes)")
                elif _sha256(path) != record["sha256"]:
                    damaged.append(f"{path} (altered: its checksum does not match)")
                else:
                    self._checked.add(path.name)
        if damaged:
            raise ValueError(
                f"damaged cache: {', '.join(damaged)}. Delete the file and run the same command again: "
                "only what is missing is recorded anew"
            )

    def build(self) -> None:
        """Record every missing shard, several at once where the recorder can, with a progress bar.

        Other processes that ask for the same wait here.

        Raises:
            ValueError: a finished shard is damaged, or the disk is too small or cannot be written.
        """
        if not self.missing():
            return
        _make_folder(self.folder)
        with _locked(self.folder / "lock"):
            self.check()
            missing = self.missing()
            if not missing:
                return
            for partial in self.folder.glob("*.partial"):
                partial.unlink()
            refuse_if_too_large([self])
            done = self.frames - sum(self._shards[index][1] for index in missing)
            taps = ", ".join(self._recorder.taps) or "frames"
            with tqdm(
                total=self.frames, initial=done, unit=" frames", desc=f"recording {taps} ({self.name})", mininterval=0.5
            ) as bar:
                processes = min(torch.get_num_threads(), len(missing)) if self._recorder.forks else 1
                if processes > 1:
                    self._recorder.close()  # its environment's threads would be missing in a fork
                for index, record in run_jobs(self._record, missing, processes, bar.update):
                    self._enter(self._shards[index][0], record)
            self._recorder.close()

    def _record(self, index: int, progress: Callable[[int], object]) -> dict[str, Any]:
        """Make a shard and write it aside; what the manifest is to know of it."""
        path, frames = self._shards[index]
        rows = self._recorder.block(index, frames, progress)
        partial = path.with_suffix(".partial")
        with self._writing(partial):
            write_atomically(partial, lambda aside: save_file(rows | _channel_sums(rows), aside))
            return {"bytes": partial.stat().st_size, "sha256": _sha256(partial)}

    def _enter(self, path: Path, record: dict[str, Any]) -> None:
        """Let a shard that was written aside count."""
        partial = path.with_suffix(".partial")
        with self._writing(partial):
            partial.replace(path)
            manifest = {"description": self._description, "shards": self._read_manifest() | {path.name: record}}
            text = json.dumps(manifest, indent=1)
            write_atomically(self.folder / _MANIFEST, lambda partial: partial.write_text(text))
            flush(self.folder)
        self._checked.add(path.name)

    @contextmanager
    def _writing(self, partial: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise ValueError(
                f"{partial.with_suffix('.safetensors')} could not be written ({error}): make room there or set "
                "cache_dir to another disk, and run the same command again; finished shards are kept"
            ) from error

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / _MANIFEST
        if not path.exists():
            return {}
        try:
            shards = json.loads(path.read_text())["shards"]
            return {str(name): {"bytes": int(r["bytes"]), "sha256": str(r["sha256"])} for name, r in shards.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete the folder {self.folder} and run the same command again"
            ) from error

    def open(self) -> list[Rows]:
        """Every shard's columns, mapped into memory: pages are read when used and can be dropped by the system.

        Raises:
            ValueError: a shard is damaged or missing.
        """
        self.check()
        missing = self.missing()
        if missing:
            raise ValueError(f"{self._shards[missing[0]][0]} is missing: run the same command again to record it")
        shards = []
        for path, _ in self._shards:
            with safe_open(path, "pt") as file:
                shards.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return shards


def statistics(shards: Sequence[Rows], tap: str) -> Statistics:
    """Mean and std of a tap from the float64 sums that were taken when its shards (or blocks) were recorded."""
    shards = [shard if f"sums/{tap}" in shard else shard | _channel_sums(shard) for shard in shards]
    count = sum(shard[f"activations/{tap}"][..., 0].numel() for shard in shards)
    total, squares = torch.stack([shard[f"sums/{tap}"] for shard in shards]).sum(0) / count
    return Statistics(total.float(), (squares - total.square()).mean().clamp_min(0).sqrt().float())


def _channel_sums(rows: Rows) -> Rows:
    """Sum and sum of squares of each tap's channels, [2 C] in float64."""
    sums = {}
    for name, acts in rows.items():
        if not name.startswith("activations/"):
            continue
        total = torch.zeros(2, acts.shape[-1], dtype=torch.float64)
        for chunk in acts.flatten(0, -2).split(_CHUNK_ROWS):
            values = chunk.double()
            total += torch.stack([values.sum(0), values.square().sum(0)])
        sums[f"sums/{name.removeprefix('activations/')}"] = total
    return sums


def refuse_if_too_large(caches: Sequence[ActivationCache]) -> None:
    """Raise ValueError if the shards still to be written do not fit on the disk."""
    needed = {cache: cache.missing_bytes() for cache in caches}
    total = sum(needed.values())
    folder = caches[0].folder
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if total and total + _RESERVE > free:
        parts = ", ".join(
            f"{size / 1e9:.2f} GB for {cache.frames} {cache.name} frames" for cache, size in needed.items() if size
        )
        raise ValueError(
            f"the cache needs {parts}, but {folder} has {free / 1e9:.2f} GB free: lower num_frames, validation_frames "
            "or test_frames, whichever the data take, or set cache_dir to another disk (data that take a source can be "
            "streamed instead: source stream)"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, however it ends.

    Raises:
        ValueError: the folder cannot be written.
    """
    try:
        file = path.open("w")
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error}): set cache_dir to a folder you may write") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rank_zero_info(f"waiting for another process that is recording {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make {folder} ({error}): set cache_dir to a folder you may write") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
