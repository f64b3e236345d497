import numpy as np
import pytest
from scipy import stats

from environments.heist import DIRECTION_STEPS, DIRECTIONS, QUADRANTS
from interpretability.directions import contrasts, exchanged, pooled_deviation, selectivity

LEVELS = 40
UNITS = ("right first", "key on the right", "gem on the left", "one shape of corner", "up in one quadrant", "noise")


def made_up(seed: int = 0) -> np.ndarray:
    """Responses of units that stand for one thing each."""
    noise = np.random.default_rng(seed).normal(size=(LEVELS, 4, 2, 2, len(UNITS) + 1))
    noise[..., -1] = 1
    for index, quadrant in enumerate(QUADRANTS):
        for axis in (0, 1):
            first = np.array([quadrant[0], 0] if axis == 0 else [0, quadrant[1]])
            second = np.array(quadrant) - first
            for gem in (0, 1):
                lit = [
                    tuple(first) == (1, 0),
                    quadrant[0] == 1,
                    gem == 0 and quadrant[0] == 1,
                    {tuple(-first), tuple(second)} == {(-1, 0), (0, 1)},
                    tuple(first) == (0, 1) and quadrant[0] == 1,
                ]
                noise[:, index, axis, gem, : len(lit)] += 3 * np.array(lit)
    return noise


def test_tells_the_first_step_from_what_gives_it_away():
    responses = made_up()
    deviation = pooled_deviation(responses)
    found = {name: selectivity(part, deviation, permutations=999) for name, part in contrasts(responses).items()}
    right = DIRECTIONS.index("right")
    stands = {name: one.stands[:, :-1].T.tolist() for name, one in found.items()}
    only_right = [direction == right for direction in range(4)]
    nothing = [False] * 4
    assert stands["first_step"] == [only_right, nothing, nothing, nothing, nothing, nothing]
    assert stands["key_side"] == [nothing, only_right, nothing, nothing, nothing, nothing]
    plain = np.array(stands["plain"])
    assert plain[:2, right].all(), "a plain comparison takes seeing the key for knowing the way"
    assert found["first_step"].effect[right, 0] == pytest.approx(3, abs=0.5)
    assert found["first_step"].low[right, 0] < found["first_step"].effect[right, 0] < found["first_step"].high[right, 0]
    silent = len(UNITS)
    for one in found.values():
        assert not one.stands[:, silent].any()
        assert (one.effect[:, silent] == 0).all()


def test_one_unit_of_many_stands_by_itself():
    responses = np.random.default_rng(2).normal(size=(40, 4, 2, 2, 64))
    responses[..., 9] = made_up()[:40, ..., 0]
    found = selectivity(contrasts(responses)["first_step"], pooled_deviation(responses), permutations=99)
    assert np.argwhere(found.stands).tolist() == [[DIRECTIONS.index("right"), 9]]


def test_contrasts_agree_with_naive_loops():
    responses = np.random.default_rng(1).normal(size=(3, 4, 2, 2, 2))
    found = contrasts(responses)
    for level in range(3):
        for unit in range(2):
            mean, one = {}, {}
            for index, (x, y) in enumerate(QUADRANTS):
                for axis in (0, 1):
                    mean[x, y, axis] = responses[level, index, axis, :, unit].mean()
                    one[x, y, axis] = responses[level, index, axis, axis, unit]  # gem and first leg along one axis
            for number, direction in enumerate(DIRECTIONS):
                sign = 1 if direction in ("right", "up") else -1
                first, key = [], []
                for other in (1, -1):
                    across = direction in ("up", "down")
                    here = (other, sign) if across else (sign, other)
                    there = (other, -sign) if across else (-sign, other)
                    first.append(mean[*here, int(across)] - mean[*here, 1 - int(across)])
                    key.append(one[*here, 1 - int(across)] - one[*there, 1 - int(across)])
                own, rest = [], []
                for (x, y, axis), value in mean.items():
                    step = (x, 0) if axis == 0 else (0, y)
                    (own if step == DIRECTION_STEPS[number] else rest).append(value)
                plain = np.mean(own) - np.mean(rest)
                assert sorted(found["first_step"][level, number, :, unit]) == pytest.approx(sorted(first))
                assert sorted(found["key_side"][level, number, :, unit]) == pytest.approx(sorted(key))
                assert found["plain"][level, number, 0, unit] == pytest.approx(plain)


def test_exchanged_labels_leave_nothing_and_uniform_p_values():
    units = 100
    responses = np.random.default_rng(2).normal(size=(LEVELS, 4, 2, 2, units))
    responses[:, 0:2, 1] += 2  # all of them: up first
    part = contrasts(responses)["first_step"]
    assert selectivity(part, pooled_deviation(responses), permutations=199).stands[DIRECTIONS.index("up")].all()
    ps = []
    for seed in range(20):
        shuffled = selectivity(exchanged(part, seed), pooled_deviation(responses), permutations=199, seed=seed + 100)
        assert shuffled.stands.mean() < 0.02
        ps.append(shuffled.p)
    # the larger of two p-values that are independent: its square root of the distribution function is uniform
    largest = np.stack(ps)[:, :, 0].ravel()
    assert stats.kstest(largest**2, "uniform").pvalue > 0.001


def test_the_deviation_is_that_of_one_scene():
    responses = np.random.default_rng(3).normal(size=(500, 4, 2, 2, 2)) * [1, 3]
    responses += np.arange(16).reshape(4, 2, 2, 1)  # what differs between scenes is not noise
    np.testing.assert_allclose(pooled_deviation(responses), [1, 3], rtol=0.05)
