"""Checks of what a study is given."""

import tempfile
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path


def check_at_least_one(numbers: Mapping[str, int]) -> None:
    """Refuse the first number that is below 1.

    Args:
        numbers: by the name of their argument.

    Raises:
        ValueError: names it.
    """
    _check(numbers, 1)


def check_not_negative(numbers: Mapping[str, int]) -> None:
    """Refuse the first number that is below 0.

    Args:
        numbers: by the name of their argument.

    Raises:
        ValueError: names it.
    """
    _check(numbers, 0)


def check_not_empty(lists: Mapping[str, Sized | None]) -> None:
    """Refuse the first list that is empty; null is none.

    Args:
        lists: by the name of their argument.

    Raises:
        ValueError: names it.
    """
    for name, given in lists.items():
        if given is not None and not len(given):
            raise ValueError(f"{name} is empty: give at least one")


def check_files(name: str, paths: Sequence[str]) -> None:
    """Refuse no file at all, and one that is named twice, however it is written.

    Args:
        name: of the argument.
        paths: that it names.

    Raises:
        ValueError: names the argument and what it was given.
    """
    if not paths or len({Path(path).resolve() for path in paths}) < len(paths):
        raise ValueError(f"{name} {list(paths)} must name at least one file, and none twice")


def check_distances(distances: tuple[int, int]) -> None:
    """Refuse numbers of moves that do not rise from at least 1.

    Raises:
        ValueError: says so.
    """
    if not 1 <= distances[0] <= distances[1]:
        raise ValueError(f"distances {list(distances)} must rise from at least 1: least, then greatest")


def check_writable(name: str, folder: str) -> None:
    """Make a folder, and refuse one in which nothing can be kept.

    Args:
        name: of the argument.
        folder: made where it is missing.

    Raises:
        ValueError: names the argument.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name} {folder} cannot be written into ({error.strerror}): give another folder") from error


def _check(numbers: Mapping[str, int], least: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} {number} must be at least {least}")
