import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from interpretability.entity_code import EntityCode, entity_code, level_auc, variance_explained
from interpretability.permutations import shuffle_labels
from interpretability.statistics import paired_bootstrap

LEVELS, ENTITIES, BOUND = 60, 5, 0.9
UNITS = ("one entity", "five levels", "three levels of four", "all alike", "nothing", "silent", "below nothing")


def made_up(seed: int) -> np.ndarray:
    """Responses of units that code one thing each; every level adds something of its own to all of them."""
    rng = np.random.default_rng(seed)
    means = np.zeros((ENTITIES + 1, len(UNITS)))
    means[2, 0] = 8
    means[:ENTITIES, 1] = 8 * np.array([3, 1, 5, 2, 4])
    means[:ENTITIES, 2] = [8, 8, 16, 24, 0]
    means[:ENTITIES, 3] = 8
    means[:, 6] = [-8, -16, 0, 0, 0, 0]
    values = means + rng.normal(size=(LEVELS, ENTITIES + 1, len(UNITS))) + rng.normal(size=(LEVELS, 1, len(UNITS)))
    values[..., 5] = 0
    return values


@pytest.fixture(scope="module")
def code() -> EntityCode:
    return entity_code(made_up(0), made_up(1), permutations=199)


def test_tells_identity_from_strength(code: EntityCode) -> None:
    together = code.together(BOUND)
    assert code.responds(BOUND).sum(0).tolist() == [1, 5, 4, 5, 0, 0, 2]
    assert together.sum(0).tolist() == [1, 5, 3, 1, 0, 0, 2]
    assert np.flatnonzero(together[:, 0]).tolist() == [2]
    assert {2, 3} < set(np.flatnonzero(together[:, 2]).tolist())
    assert code.tells([3, 0, 2], BOUND).tolist() == [False, True, True, False, False, False, False]
    assert code.tells([0, 1], BOUND).tolist() == [False, True, False, False, False, False, True]
    assert (code.explained_p[[0, 1, 2, 6]] < 0.01).all()
    assert code.explained_p[5] == 1
    assert code.decoded[1] > 0.9
    assert code.decoded[5] == pytest.approx(1 / ENTITIES)
    assert abs(code.decoded[4] - 1 / ENTITIES) < 0.1
    np.testing.assert_allclose(code.decoded_by_level.mean(0), code.decoded)
    assert code.effect[0, 6] < -2


def test_one_unit_of_many_stands_by_itself() -> None:
    noise = np.random.default_rng(3).normal(size=(2, 40, ENTITIES + 1, 128))
    noise[:, :, 2, 5] += 50
    code = entity_code(*noise, permutations=99)
    assert np.argwhere(code.responds(BOUND)).tolist() == [[2, 5]]
    assert code.explained_p[5] <= 0.05 / 128


def test_shuffled_labels_tell_nothing() -> None:
    rng = np.random.default_rng(2)
    code = entity_code(shuffle_labels(made_up(0), rng), shuffle_labels(made_up(1), rng), permutations=199)
    assert not code.responds(0.6).any()
    assert not code.together(0.6).any()
    assert (code.explained_p > 0.001).all()
    assert code.decoded.max() < 0.4


def test_what_is_chosen_is_chosen_on_tuning_levels() -> None:
    """A unit that orders entities one way on tuning levels and the other way on test levels tells nothing."""
    code = entity_code(-made_up(0), made_up(1), permutations=199)
    assert not code.responds(0.6).any()
    assert not code.together(0.6).any()


def test_areas_agree_with_scikit_learn_and_a_bootstrap_over_levels() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(LEVELS, 3))
    one, other = (shared + rng.normal(shift, 1, size=(LEVELS, 3)).round(1) for shift in (1, 0))
    found = level_auc(one, other)
    labels = [1] * LEVELS + [0] * LEVELS
    for unit in range(3):
        both = np.concatenate([one[:, unit], other[:, unit]])
        assert found.value[unit] == pytest.approx(roc_auc_score(labels, both))

        def area(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
            a, b = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1)
            higher = (a[..., :, None] > b[..., None, :]).mean((-1, -2))
            return higher + 0.5 * (a[..., :, None] == b[..., None, :]).mean((-1, -2))

        bootstrap = paired_bootstrap(area, [one[:, unit], other[:, unit]])
        assert (found.low[unit], found.high[unit]) == pytest.approx((bootstrap.low, bootstrap.high), abs=0.025)


def test_variance_explained_agrees_with_a_loop() -> None:
    values = made_up(4)[:, :ENTITIES]
    for unit in range(len(UNITS)):
        column = values[..., unit]
        total = sum((column[level, k] - column.mean()) ** 2 for level in range(LEVELS) for k in range(ENTITIES))
        between = sum(LEVELS * (column[:, k].mean() - column.mean()) ** 2 for k in range(ENTITIES))
        assert variance_explained(values)[unit] == pytest.approx(between / total if total else 0)
