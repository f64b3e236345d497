"""Checks of what a study is given."""

from collections.abc import Mapping


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


def _check(numbers: Mapping[str, int], least: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} {number} must be at least {least}")
