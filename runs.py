"""The folder that every run owns: `runs/NAME/version_K/`, and which of them `--ckpt_path auto` goes on with.

config.yaml     the whole configuration, defaults included: `train.py --config` takes it again
events.out...   TensorBoard
checkpoints/    written by ModelCheckpoint
figures/        written by callbacks
summary.json    final metrics; its presence says that the run is finished
"""

import fcntl
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

from networks.files import write_atomically

CONFIG = "config.yaml"
SUMMARY = "summary.json"
LOCK = ".lock"

_FOLDER = "PROCGEN_LENS_RUN"  # environment variable with the folder, for ranks that rank 0 starts itself
_STARTED = time.time()
_SHOWN = 3  # differences between two configurations that are named
_APART = 30.0  # seconds by which ranks that are started together may come here apart

# where to go on from is no part of what is run; `config` only names the file that the rest was read from
_NOT_COMPARED = ("ckpt_path", "config")


@dataclass
class Run:
    """One run's folder, held by this process until it ends (an operating system lock: a killed process lets go)."""

    folder: Path
    checkpoint: Path | None = None  # what to go on from
    resumed: bool = False
    passed_over: str = ""  # what of an unfinished run kept it from going on
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def version(self) -> int:
        """The K of `version_K`."""
        return _number(self.folder)

    def __str__(self) -> str:
        start = f"goes on from {self.checkpoint}" if self.checkpoint else "starts at step 0"
        return f"run {self.folder} {start}{self.passed_over}"

    def release(self) -> None:
        """Let another process take the folder; the end of this process does the same."""
        if self._lock is not None:
            self._lock.close()

    def discard(self) -> None:
        """Remove the folder of a run that stopped before any work; one that was there before stays."""
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            for parent in (self.folder.parent, self.folder.parent.parent):
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()


def claim_run(root: Path, name: str, config: str, ckpt_path: str | None) -> Run:
    """The run that a command with this configuration (YAML text) and this `--ckpt_path` is to write into."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        run = join_run(root, name, config, resume=ckpt_path == "auto")
    else:
        passed_over = ""
        going_on = continue_run(root, name, config) if ckpt_path == "auto" else None
        if going_on is None and ckpt_path == "auto":
            passed_over = _set_otherwise(root / name, config)
        run = going_on or start_run(root, name, config)
        run.passed_over = passed_over
        os.environ[_FOLDER] = str(run.folder.absolute())
    if ckpt_path not in (None, "auto"):
        run.checkpoint = Path(ckpt_path)
    return run


def start_run(root: Path, name: str, config: str) -> Run:
    """Make the next free `root/name/version_K` and write the configuration (YAML text) into it.

    Raises:
        ValueError: a name that is no folder's of its own, or a root that cannot be written into.
    """
    check_name(name)
    number = max((_number(folder) for folder in _versions(root / name)), default=-1) + 1
    while True:
        folder = root / name / f"version_{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another process was quicker
            number += 1
            continue
        except OSError as error:
            said = f"{folder} cannot be made ({error.strerror})"
            raise ValueError(f"{said}: give another --root, or --trainer.default_root_dir to train.py") from error
        run = Run(folder, _lock=_lock(folder))
        write_atomically(folder / CONFIG, lambda partial: partial.write_text(config))
        return run


def continue_run(root: Path, name: str, config: str) -> Run | None:
    """The newest unfinished run of the same configuration that no other process is busy with; None if there is none.

    Its newest readable checkpoint is what to go on from; None where the run was killed before it wrote one.

    Raises:
        ValueError: a name that is no folder's of its own.
    """
    check_name(name)
    for folder in _unfinished(root / name, config):
        lock = _lock(folder)
        if lock is not None:
            return Run(folder, newest_checkpoint(folder), resumed=True, _lock=lock)
    return None


def check_name(name: str) -> None:
    """Refuse a name of runs that would put them elsewhere than into a folder of their own under the root.

    Raises:
        ValueError: names it.
    """
    if name in ("", "..") or Path(name).name != name:
        raise ValueError(f"--name {name!r} is no name of a folder: give one without slashes, such as my_run")


def join_run(root: Path, name: str, config: str, resume: bool, patience: float = 60.0) -> Run:
    """The run that rank 0 has just started or goes on with, for the other ranks of distributed training.

    Ranks that rank 0 has started are told; those that were started beside it (torchrun, SLURM) take the folder that
    was claimed about when they began, and no older unfinished one.

    Raises TimeoutError if rank 0 has not made its folder within `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while (folder := _claimed(root / name, config)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 made no folder under {root / name}")
        time.sleep(0.1)
    return Run(folder, newest_checkpoint(folder) if resume else None, resumed=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint written last of those that can be read; a file cut short by a kill is passed over."""
    files = sorted(folder.glob("checkpoints/**/*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next((path for path in files if readable(path)), None)


def _versions(folder: Path) -> list[Path]:
    return [path for path in folder.glob("version_*") if path.is_dir() and path.name[8:].isdigit()]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("version_"))


def _unfinished(folder: Path, config: str) -> list[Path]:
    """Runs without a summary whose configuration is the same, newest first."""
    wanted = _comparable(config)
    return [path for path in _started(folder) if _comparable((path / CONFIG).read_text()) == wanted]


def _started(folder: Path) -> list[Path]:
    """Runs without a summary, newest first."""
    started = [path for path in _versions(folder) if (path / CONFIG).exists() and not (path / SUMMARY).exists()]
    return sorted(started, key=_number, reverse=True)


def _set_otherwise(folder: Path, config: str) -> str:
    """What sets the newest unfinished run of another configuration apart, and how to go on from it all the same."""
    wanted = _flat(_comparable(config))
    for run in _started(folder):
        if (checkpoint := newest_checkpoint(run)) is None:
            continue
        its = _flat(_comparable((run / CONFIG).read_text()))
        names = sorted(name for name in its.keys() | wanted.keys() if its.get(name) != wanted.get(name))
        apart = [f"{name} was {its.get(name)}, is {wanted.get(name)}" for name in names[:_SHOWN]]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        said = f"{run} is unfinished but was set otherwise ({'; '.join(apart)}{more})"
        return f"\n{said}: --ckpt_path {checkpoint} goes on from it"
    return ""


def _flat(values: Any, name: str = "") -> dict[str, Any]:
    """Settings by dotted name; lists of settings are numbered."""
    if isinstance(values, list):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {name: values}
    parts = [_flat(inner, f"{name}.{part}".strip(".")) for part, inner in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def _claimed(folder: Path, config: str) -> Path | None:
    """The folder that rank 0 says, else the newest that was claimed no earlier than this process began."""
    folders = _unfinished(folder, config)
    told = [path for path in folders if str(path.absolute()) == os.environ.get(_FOLDER)]
    lately = [path for path in folders if (path / LOCK).exists() and _claim_time(path) > _STARTED - _APART]
    return next(iter([*told, *lately]), None)


def _claim_time(folder: Path) -> float:
    return (folder / LOCK).stat().st_mtime


def _comparable(config: str) -> dict[str, Any]:
    values = yaml.safe_load(config)
    return {key: value for key, value in values.items() if key not in _NOT_COMPARED}


def readable(path: Path) -> bool:
    """Whether a file is a whole checkpoint that can be loaded without unpickling code; weights alone are none, also
    those that Lightning saves as such.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch, zipfile and pickle each have their own for a broken file
        return False
    return isinstance(held, dict) and {"pytorch-lightning_version", "optimizer_states"} <= held.keys()


def _lock(folder: Path) -> IO[str] | None:
    file = (folder / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    os.utime(folder / LOCK)  # when it was claimed, for the other ranks
    return file
