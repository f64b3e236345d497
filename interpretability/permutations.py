"""Permutation tests in which the level is what is permuted, for many units at once.

Frames of one level are far from independent, so labels are exchanged within a level, for all its frames of a kind
together. p counts the measured order among those drawn, (1 + b) / (1 + m), so that it is never 0 (Phipson and Smyth
2010, https://doi.org/10.2202/1544-6115.1585).
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import false_discovery_control
from tqdm import tqdm

_AT_ONCE: Final = 500  # permutations in memory
_ROUNDING: Final = 1e-9  # sums in another order are ties


def permutation_p(found: Float[np.ndarray, "*U"], null: Float[np.ndarray, "R *U"]) -> Float[np.ndarray, "*U"]:
    """Share of R permutations, and of the measured order beside them, with a statistic at least as high."""
    return _p(_as_high(found, null), len(null))


def sign_flip_p(
    contrasts: Float[np.ndarray, "L *U"], permutations: int = 9_999, seed: int = 0
) -> Float[np.ndarray, "*U"]:
    """One-sided p-values of mean contrasts between two labels of a level, such as key less gem, being above 0.

    To exchange the two labels within a level turns the sign of its contrasts, of all units together.

    Args:
        contrasts: a level's mean under the one label less that under the other.
        permutations: R.
        seed: of the levels that are exchanged, which every call with as many levels shares.

    Raises:
        ValueError: no level, or no permutation.
    """
    levels = len(contrasts)
    if levels < 1 or permutations < 1:
        raise ValueError(f"a test of {levels} levels and {permutations} permutations is none: give at least 1 each")
    flat = contrasts.reshape(levels, -1).astype(np.float64)
    found = flat.sum(0)
    rng = np.random.default_rng(seed)
    high = np.zeros(flat.shape[1], dtype=np.int64)
    for start in range(0, permutations, _AT_ONCE):
        signs = rng.integers(2, size=(min(_AT_ONCE, permutations - start), levels)) * 2.0 - 1
        high += _as_high(found, signs @ flat)
    return _p(high, permutations).reshape(contrasts.shape[1:])


def within_level_p(
    values: Float[np.ndarray, "L K U"],
    statistic: Callable[[Float[np.ndarray, "L K U"]], Float[np.ndarray, " U"]],
    permutations: int = 999,
    seed: int = 0,
    progress: str | None = None,
) -> Float[np.ndarray, " U"]:
    """p-values of a statistic of K labels being as high, the labels of each level in another order.

    Args:
        values: of each level under each label.
        statistic: of all units.
        permutations: R.
        seed: of the orders, the same for all units.
        progress: title of a progress bar.
    """
    rng = np.random.default_rng(seed)
    found = statistic(values)
    high = np.zeros(found.shape, dtype=np.int64)
    for _ in tqdm(range(permutations), desc=progress, disable=progress is None, leave=False):
        high += _as_high(found, statistic(shuffle_labels(values, rng))[None])
    return _p(high, permutations)


def shuffle_labels(values: Float[np.ndarray, "L K *U"], rng: np.random.Generator) -> Float[np.ndarray, "L K *U"]:
    """The labels of each level in an order of its own, for all units together."""
    orders = rng.permuted(np.tile(np.arange(values.shape[1]), (len(values), 1)), axis=1)
    return values[np.arange(len(values))[:, None], orders]


def enough_permutations(permutations: int, tests: int, rate: float = 0.05) -> int:
    """That many, or so many more that one of the tests can stand by itself: p is at least 1 / (1 + m), and of the first
    to stand `discoveries` wants rate / tests.

    Args:
        permutations: the least.
        tests: that are corrected together.
        rate: of false discoveries.
    """
    return max(permutations, math.ceil(tests / rate - 1e-9) - 1)


def discoveries(p: Float[np.ndarray, "*U"], rate: float = 0.05) -> Bool[np.ndarray, "*U"]:
    """Which of these tests stand, at most that share of them falsely (Benjamini and Hochberg 1995)."""
    return (false_discovery_control(p.ravel()) <= rate).reshape(p.shape)


def _as_high(found: np.ndarray, null: np.ndarray) -> np.ndarray:
    """How many of the permutations are at least as high; what is not a number counts, so that it never gets a low p."""
    return (~(null < found - _ROUNDING * np.abs(found))).sum(0)


def _p(high: np.ndarray, permutations: int) -> np.ndarray:
    return (1 + high) / (1 + permutations)
