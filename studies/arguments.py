"""Checks of what a study is given."""

from collections.abc import Mapping


def check_at_least_one(numbers: Mapping[str, int]) -> None:
    """Refuse the first number that is below 1.

    Args:
        numbers: by the name of their argument.

    Raises:
        ValueError: names it.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
