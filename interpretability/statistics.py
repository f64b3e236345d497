"""Intervals for what was measured on a fixed list of levels.

The unit that is resampled is always the level: frames of one level are far from independent.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 9_999
_COUNTS_AT_ONCE = 2**17  # a megabyte
_SUM_RESAMPLES = 2_000  # kept in memory: a few thousand levels each
_AT_ONCE = 1_000  # resamples in memory


class Interval(NamedTuple):
    """A measured value with its 95 % bounds."""

    value: float
    low: float
    high: float


def join_metrics(intervals: Mapping[str, Interval]) -> dict[str, float]:
    """`NAME`, `NAME_low` and `NAME_high` of each interval, as summaries carry them."""
    return {
        f"{name}{ending}": bound
        for name, interval in intervals.items()
        for ending, bound in zip(("", "_low", "_high"), interval, strict=True)
    }


def spreads(intervals: Float[np.ndarray, "N 3"]) -> list[list[float]]:
    """How far each interval (value, low, high) reaches below and above its value, as error bars take it."""
    spread: list[list[float]] = np.abs(intervals[:, 1:] - intervals[:, :1]).T.tolist()
    return spread


def meaningful_digits(low: float, high: float) -> int:
    """Decimals that leave two digits of an interval's width (one below 10, none from there on).

    Two where there is no width, or none that is finite: ratios over resamples with a mean of zero have such bounds.
    """
    width = high - low
    return max(0, 1 + math.ceil(-math.log10(width))) if 0 < width < math.inf else 2


def bracketed(value: float, low: float, high: float, digits: int = 0) -> str:
    """A number and its bounds, `0.97 (0.89 to 1.00)`, to the digits that mean something and at least `digits`."""
    digits = max(digits, meaningful_digits(low, high))
    return f"{value:z.{digits}f} ({low:z.{digits}f} to {high:z.{digits}f})"


def wilson_interval(successes: int, trials: int) -> Interval:
    """A fraction with Wilson's score interval, which stays sensible when all or none succeed.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials is no fraction: measure at least one trial")
    bounds = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(bounds.low), float(bounds.high))


def bootstrap_interval(values: Shaped[np.ndarray, " L"], *, seed: int = 0) -> Interval:
    """The mean over levels with its percentile bootstrap interval.

    Where all values are equal the interval has no width: a bootstrap knows nothing about what it never saw (the
    Wilson interval of the solved fraction does).
    """
    return paired_bootstrap(_mean, [values], seed=seed)


def paired_bootstrap(
    statistic: Callable[..., Float[np.ndarray, " *resamples"]],
    samples: Sequence[Shaped[np.ndarray, " L"]],
    *,
    seed: int = 0,
) -> Interval:
    """A statistic of several arms played on the same levels, with its percentile bootstrap interval.

    A resample draws levels and takes all arms' values on each, so that what the arms share cancels.

    Args:
        statistic: maps as many arrays as there are samples, and `axis`, to the statistic along that axis.
        samples: one array per arm, the value on each level, in the same order of levels.
        seed: of the resampling, which draws from a generator of its own.

    Returns:
        The interval; NaN bounds where the statistic is undefined on some resamples (a ratio over zero).

    Raises:
        ValueError: the arms have different numbers of levels, or none.
    """
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    counts = {array.shape for array in arrays}
    if len(counts) != 1 or arrays[0].ndim != 1 or arrays[0].size == 0:
        raise ValueError(f"paired samples need one value a level and the same levels, got shapes {sorted(counts)}")
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # NaN bounds say it already
        value = float(statistic(*arrays, axis=-1))
        if arrays[0].size == 1:  # scipy refuses a single observation: its interval is the point itself
            return Interval(value, value, value)
        bounds = stats.bootstrap(
            arrays,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=_RESAMPLES,
            batch=1_000,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return Interval(value, float(bounds.low), float(bounds.high))


def grouped_mean(values: Shaped[np.ndarray, " n"], groups: Int[np.ndarray, " n"], *, seed: int = 0) -> Interval:
    """The mean of values that come in groups (cells of a maze, mazes of a level), with bounds over the groups.

    Args:
        values: truth values or numbers.
        groups: which one each is of.
        seed: of the bootstrap.
    """
    _, number = np.unique(groups, return_inverse=True)
    return paired_bootstrap(ratio_of_means, [np.bincount(number, weights=values), np.bincount(number)], seed=seed)


def bootstrap_of_sums(
    sums: Shaped[np.ndarray, "L M"],
    statistic: Callable[[Float[np.ndarray, "R M"]], Float[np.ndarray, " R"]],
    *,
    seed: int = 0,
) -> Interval:
    """A statistic of sums over levels, such as an accuracy or an R2, with its percentile bootstrap interval.

    Every call with as many levels and the same seed draws the same levels.

    Args:
        sums: M sums (counts, squares) over the frames of each level.
        statistic: maps the sums of R resamples to R values; NaN where a resample leaves it undefined.
        seed: of the resampling, which draws from a generator of its own.

    Returns:
        The interval; NaN where the statistic is undefined.
    """
    sums = np.asarray(sums, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(0, keepdims=True))[0])
        values = statistic(_resampled_sums(sums, seed))
    known = values[np.isfinite(values)]
    if not len(known):
        return Interval(value, np.nan, np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def resampled_means(values: Float[np.ndarray, "L *U"], *, seed: int = 0) -> Float[np.ndarray, "R *U"]:
    """Means over resampled levels, for many units at once; the quantiles of what follows from them bound it."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    means = _resampled_sums(flat, seed) / len(flat)
    return means.reshape(-1, *values.shape[1:])


def _resampled_sums(values: Float[np.ndarray, "L M"], seed: int) -> Float[np.ndarray, "R M"]:
    """Sums over the levels of each resample, a few at a time, so that their counts stay in the processor's cache."""
    count, columns = values.shape
    draws = _draws(count, seed)
    step = max(_COUNTS_AT_ONCE // count, columns, 1)
    parts = [draws[start : start + step].astype(np.float64) @ values for start in range(0, len(draws), step)]
    return np.concatenate(parts)


@lru_cache(maxsize=32)  # each target of a probe is answered on another number of levels
def _draws(count: int, seed: int) -> UInt8[np.ndarray, "R count"]:
    """How often each of `count` levels is drawn, in each resample: never 256 times."""
    weights = np.full(count, 1 / count)
    return np.random.default_rng(seed).multinomial(count, weights, _SUM_RESAMPLES).astype(np.uint8)


def crossed_bootstrap(
    values: Float[np.ndarray, "N L"],
    strata: Int[np.ndarray, " L"] | None = None,
    *,
    trim: float = 0.0,
    seed: int = 0,
) -> Interval:
    """The mean over agents of each agent's mean over levels, with an interval for other agents and other levels.

    With `trim=0.25` it is the interquartile mean over agents, recommended for few training seeds by Agarwal et al.
    (2021, arXiv 2108.13264). As there, resamples are drawn within strata. There the strata are games, on each of which
    other agents were trained; here every agent plays every level, so agents are drawn whole, levels within their
    strata (of equal difficulty, say), the same for all agents, and both at once. A trimmed mean of fewer than four
    agents trims nothing, and with fewer than about ten any bootstrap over agents is somewhat too narrow.

    Args:
        values: one row an agent, one column a level; NaN where a level says nothing of an agent. An agent of which
            no level says anything is left out, in the value and in each resample.
        strata: number of the stratum of each level; None draws from all levels alike.
        trim: fraction of agents left out at either end.
        seed: of the resampling, which draws from a generator of its own.

    Returns:
        The interval; NaN where nothing was measured.
    """
    known = np.isfinite(values)
    if not known.any():
        return Interval(np.nan, np.nan, np.nan)
    agents, levels = values.shape
    sums, weights = np.where(known, values, 0.0), known.astype(np.float64)
    strata = np.zeros(levels, dtype=np.int64) if strata is None else strata
    generator = np.random.default_rng(seed)
    means = np.empty((_RESAMPLES, agents))
    for start in range(0, _RESAMPLES, _AT_ONCE):
        part = means[start : start + _AT_ONCE]
        counts = np.empty((len(part), levels))
        for stratum in np.unique(strata):
            inside = np.flatnonzero(strata == stratum)
            counts[:, inside] = generator.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), len(part))
        with np.errstate(invalid="ignore"):
            part[:] = (counts @ sums.T) / (counts @ weights.T)
    drawn = generator.integers(agents, size=means.shape)
    resampled = _trimmed_mean(np.take_along_axis(means, drawn, axis=1), trim)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    with np.errstate(invalid="ignore"):
        value = _trimmed_mean((sums.sum(1) / weights.sum(1))[None], trim)[0]
    return Interval(float(value), float(low), float(high))


def _trimmed_mean(values: Float[np.ndarray, "R N"], trim: float) -> Float[np.ndarray, " R"]:
    """`scipy.stats.trim_mean` of each row's known values; NaN where there is none."""
    ordered = np.sort(values, axis=1)  # NaN come last
    known = np.isfinite(ordered).sum(1, keepdims=True)
    cut = (trim * known).astype(np.int64)
    place = np.arange(values.shape[1])
    kept = (place >= cut) & (place < known - cut)
    with np.errstate(invalid="ignore"):
        return np.where(kept, ordered, 0).sum(1) / kept.sum(1)


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.mean(values, axis=axis)


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray, axis: int = -1) -> np.ndarray:
    """mean(numerator) / mean(denominator): for `paired_bootstrap`. NaN or infinite over a mean of zero."""
    return np.mean(numerator, axis=axis) / np.mean(denominator, axis=axis)


def difference_of_means(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
    """mean(one) - mean(other): for `paired_bootstrap`."""
    return np.mean(one, axis=axis) - np.mean(other, axis=axis)


def fraction_recovered(clean: np.ndarray, spliced: np.ndarray, ablated: np.ndarray, axis: int = -1) -> np.ndarray:
    """(spliced - ablated) / (clean - ablated) of the means: for `paired_bootstrap`.

    1 is as good as the clean agent, 0 as bad as the ablated one; meaningless where those two do not differ.
    """
    baseline = np.mean(ablated, axis=axis)
    return (np.mean(spliced, axis=axis) - baseline) / (np.mean(clean, axis=axis) - baseline)
