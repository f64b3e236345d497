import numpy as np
import pytest

from interpretability.statistics import (
    bootstrap_interval,
    bootstrap_of_sums,
    bracketed,
    crossed_bootstrap,
    fraction_recovered,
    grouped_mean,
    join_metrics,
    paired_bootstrap,
    ratio_of_means,
    resampled_means,
    wilson_interval,
)


def naive_wilson(successes: int, trials: int) -> tuple[float, float]:
    z = 1.959963984540054
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * np.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    return centre - half, centre + half


def naive_bootstrap(statistic, samples, resamples: int = 4_000) -> tuple[float, float]:
    generator = np.random.default_rng(123)
    levels = len(samples[0])
    draws = []
    for _ in range(resamples):
        rows = generator.integers(0, levels, levels)
        draws.append(statistic(*[sample[rows] for sample in samples]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (20, 20), (7, 20), (912, 1000)])
def test_wilson_agrees_with_the_formula(successes, trials):
    interval = wilson_interval(successes, trials)
    assert interval.value == successes / trials
    assert interval[1:] == pytest.approx(naive_wilson(successes, trials), abs=1e-12)
    assert join_metrics({"agent/solved": interval}).keys() == {
        "agent/solved",
        "agent/solved_low",
        "agent/solved_high",
    }


def test_bootstraps_agree_with_a_naive_loop():
    generator = np.random.default_rng(0)
    clean = 10.0 * (generator.random(200) < 0.9)
    spliced = np.where(generator.random(200) < 0.95, clean, 0.0)
    ablated = 10.0 * (generator.random(200) < 0.1)
    for statistic, samples in (
        (np.mean, [clean]),
        (ratio_of_means, [spliced, clean]),
        (fraction_recovered, [clean, spliced, ablated]),
    ):
        found = bootstrap_interval(clean) if statistic is np.mean else paired_bootstrap(statistic, samples)
        assert found.value == pytest.approx(statistic(*samples))
        assert found[1:] == pytest.approx(naive_bootstrap(statistic, samples), rel=0.01)
        assert found.low < found.value < found.high


def test_pairing_cancels_what_the_arms_share():
    returns = 10.0 * (np.arange(100) % 2)
    assert paired_bootstrap(ratio_of_means, [returns, returns]) == (1.0, 1.0, 1.0)


def test_bootstrap_is_repeatable_and_leaves_numpys_global_generator_alone():
    values = np.arange(30.0)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_a_grouped_mean_resamples_whole_groups():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=60) + np.repeat(rng.normal(size=12), 5), np.repeat(rng.permutation(40)[:12], 5)
    order = rng.permutation(60)
    found = grouped_mean(values[order], groups[order])
    members = [values[groups == group] for group in np.unique(groups)]
    drawn = [np.concatenate([members[index] for index in rng.integers(12, size=12)]).mean() for _ in range(4_000)]
    np.testing.assert_allclose(found, [values.mean(), *np.quantile(drawn, [0.025, 0.975])], atol=0.05)
    assert found.high - found.low > 1.5 * np.diff(bootstrap_interval(values)[1:]), "fives are far from independent"


def test_degenerate_samples():
    assert bootstrap_interval(np.full(5, 10.0)) == (10.0, 10.0, 10.0)
    assert bootstrap_interval(np.array([4.0])) == (4.0, 4.0, 4.0)
    assert np.isnan(paired_bootstrap(ratio_of_means, [np.zeros(5), np.zeros(5)])).all()
    with pytest.raises(ValueError, match="same levels"):
        paired_bootstrap(ratio_of_means, [np.zeros(5), np.zeros(4)])
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0, 0)


def test_crossed_bootstrap_agrees_with_a_loop():
    """Agents drawn whole, levels within strata, the same for all agents."""
    generator = np.random.default_rng(0)
    values = generator.random((6, 30)) + np.linspace(0, 2, 6)[:, None]
    values[2, 3] = np.nan
    strata = np.arange(30) % 3
    found = crossed_bootstrap(values, strata, trim=0.25)
    drawn = []
    for _ in range(2_000):
        levels = np.concatenate([generator.choice(np.flatnonzero(strata == stratum), size=10) for stratum in range(3)])
        agents = generator.integers(6, size=6)
        drawn.append(np.mean(np.sort(np.nanmean(values[agents][:, levels], axis=1))[1:-1]))
    assert found.value == pytest.approx(np.mean(np.sort(np.nanmean(values, axis=1))[1:-1]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.06)


def test_crossed_bootstrap_draws_within_strata():
    values = np.repeat([[0.0] * 5 + [10.0] * 5], 3, axis=0)
    assert crossed_bootstrap(values, np.repeat([0, 1], 5)) == (5, 5, 5)
    loose = crossed_bootstrap(values)
    assert loose.low < 3 < 7 < loose.high


def test_crossed_bootstrap_of_agents_that_nothing_is_known_of():
    values = np.array([[np.nan, np.nan], [3.0, 3.0]])
    assert crossed_bootstrap(values) == (3, 3, 3)
    assert np.isnan(crossed_bootstrap(values[:1])).all()


def test_bootstrap_of_sums_agrees_with_the_ratio_of_means() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(1, 30, 200).astype(float)
    hits = rng.binomial(frames.astype(int), 0.7).astype(float)
    found = bootstrap_of_sums(np.stack([hits, frames], 1), lambda sums: sums[:, 0] / sums[:, 1])
    expected = paired_bootstrap(ratio_of_means, [hits, frames])
    assert found.value == pytest.approx(expected.value)
    assert found.low == pytest.approx(expected.low, abs=0.005)
    assert found.high == pytest.approx(expected.high, abs=0.005)
    assert np.isnan(bootstrap_of_sums(np.zeros((3, 2)), lambda sums: sums[:, 0] / sums[:, 1])).all()


def test_resampled_means_bound_a_mean_as_its_bootstrap_does() -> None:
    values = np.random.default_rng(4).exponential(size=(60, 2, 3))
    means = resampled_means(values, seed=1)
    assert means.shape[1:] == (2, 3)
    for place in np.ndindex(2, 3):
        low, high = np.quantile(means[:, *place], [0.025, 0.975])
        whole = bootstrap_interval(values[:, *place])
        assert (low, high) == pytest.approx((whole.low, whole.high), abs=0.04)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.96667, 0.8929, 1.0), "0.97 (0.89 to 1.00)"),
        ((0.5275, 0.5256, 0.5293), "0.5275 (0.5256 to 0.5293)"),
        ((9.375, 8.4375, 10.0), "9.4 (8.4 to 10.0)"),
        ((1234.5, 1200.1, 1300.2), "1234 (1200 to 1300)"),
        ((-0.0001, -0.04, 0.05), "0.000 (-0.040 to 0.050)"),
        ((1.0, 1.0, 1.0), "1.00 (1.00 to 1.00)"),
        ((15.0, 4.0, np.inf), "15.00 (4.00 to inf)"),
        ((np.nan, np.nan, np.nan), "nan (nan to nan)"),
    ],
)
def test_bracketed_keeps_two_digits_of_the_width(numbers: tuple[float, float, float], words: str) -> None:
    assert bracketed(*numbers) == words


def test_a_ratio_over_an_agent_that_rarely_succeeds_can_be_written() -> None:
    """Its mean is zero in many resamples, but that above it in none."""
    rarely, often = np.zeros(20), np.full(20, 10.0)
    rarely[3], often[:5] = 10, 0
    ratio = paired_bootstrap(ratio_of_means, [often, rarely])
    assert np.isinf(ratio.high)
    assert bracketed(*ratio).startswith("15.00 (")
