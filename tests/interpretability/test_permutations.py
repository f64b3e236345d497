import numpy as np
import pytest
from scipy import stats

from interpretability.permutations import (
    discoveries,
    enough_permutations,
    permutation_p,
    shuffle_labels,
    sign_flip_p,
    within_level_p,
)


def between(values: np.ndarray) -> np.ndarray:
    """Variance of the labels' means."""
    return values.mean(0).var(0)


def levels_with_labels(seed: int, levels: int = 20, labels: int = 3, units: int = 400) -> np.ndarray:
    """Noise of which every level has its own share: skewed, and far larger than what differs within a level."""
    rng = np.random.default_rng(seed)
    return 5 * rng.exponential(size=(levels, 1, units)) + rng.exponential(size=(levels, labels, units))


def test_sign_flips_agree_with_scipys_test():
    rng = np.random.default_rng(0)
    contrasts = rng.normal(0.25, 1, size=(12, 6))
    ours = sign_flip_p(contrasts, 20_000)
    for unit in range(6):  # 4096 sign flips: scipy counts them all
        exact = stats.permutation_test(
            (contrasts[:, unit],), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        assert ours[unit] == pytest.approx(exact.pvalue, abs=0.012)


@pytest.mark.parametrize("seed", [0, 1])
def test_p_values_are_uniform_under_permuted_labels(seed):
    values = levels_with_labels(seed)
    flips = sign_flip_p(values[:, 0] - values[:, 1], 999, seed=seed)
    orders = within_level_p(values, between, 199, seed=seed)
    for p in (flips, orders):
        assert stats.kstest(p, "uniform").pvalue > 0.01
        assert not discoveries(p).any()


def test_frames_of_one_level_are_no_further_evidence():
    """Ten frames a level that are all alike: a test that permuted frames would find a great deal in noise."""
    values = levels_with_labels(2, levels=12)
    contrast = values[:, 0] - values[:, 1]
    frames = np.repeat(contrast, 10, axis=0)
    assert (sign_flip_p(contrast, 999) < 0.01).mean() < 0.03
    assert (sign_flip_p(frames, 999) < 0.01).mean() > 0.1


def test_finds_what_is_there_and_ties_find_nothing():
    values = levels_with_labels(4, units=50)
    values[:, 2, 7] += 3
    values[:, :, 9] = 1
    p = within_level_p(values, between, 999)
    assert np.flatnonzero(discoveries(p)).tolist() == [7]
    assert p[9] == 1
    contrast = values[:, 2] - values[:, 1]
    flips = sign_flip_p(contrast, 999)
    assert np.flatnonzero(discoveries(flips)).tolist() == [7]
    assert flips[7] == pytest.approx(1 / 1000)
    assert flips[9] == 1
    assert sign_flip_p(-contrast, 999)[7] == 1


@pytest.mark.parametrize("tests", [1, 32, 50, 896])
def test_there_are_enough_permutations_for_one_test_to_stand_by_itself(tests: int) -> None:
    for permutations, stands in ((enough_permutations(1, tests), True), (enough_permutations(1, tests) - 1, False)):
        p = np.full(tests, 1.0)
        p[0] = 1 / (1 + permutations)
        assert discoveries(p)[0] == stands
    assert enough_permutations(10**6, tests) == 10**6


def test_labels_stay_within_their_level_and_units_together():
    values = np.arange(24.0).reshape(4, 3, 2)
    shuffled = shuffle_labels(values, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), values)
    np.testing.assert_array_equal(shuffled[..., 1] - shuffled[..., 0], 1)
    assert (shuffled != values).any()


def test_the_measured_order_counts_too():
    null = np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])
    np.testing.assert_allclose(permutation_p(np.array([2.0, 5.0]), null), [0.5, 0.25])


def test_what_is_no_number_is_no_finding():
    values = levels_with_labels(5, units=3)
    values[4, 1, 1] = np.nan
    for p in (sign_flip_p(values[:, 1] - values[:, 0], 99), within_level_p(values, between, 99)):
        assert p[1] == 1
        assert (p[[0, 2]] < 1).all()
    assert permutation_p(np.array([np.nan]), np.zeros((9, 1)))[0] == 1


def test_refuses_nothing():
    with pytest.raises(ValueError, match="0 permutations"):
        sign_flip_p(np.zeros((3, 2)), 0)
