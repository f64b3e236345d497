"""Files that are written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have a file written aside, flushed and put in its place, so that a kill leaves the old one or the new one.

    Its folder is made.

    Raises:
        OSError: the disk is full or the folder cannot be written; a file already there is left whole.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        flush(partial)
        mask = os.umask(0)  # there is no way to read it but this
        os.umask(mask)
        partial.chmod(0o666 & ~mask)  # safetensors would keep files to their owner
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write down what it still holds of a file, or of a folder's list of files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
