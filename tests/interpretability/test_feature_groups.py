import numpy as np
import pytest
import torch

from interpretability.feature_groups import co_active_groups, draw_co_activity, factor_groups
from interpretability.unit_numbers import UnitNumbers


def activations() -> torch.Tensor:
    """Nine units at 4 000 positions: 0, 3, 6 follow one cause, 1 and 4 another, 2 and 5 are alone, 7 is dead."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.rand(4_000, 4, generator=generator) < 0.2
    strength = 0.5 + torch.rand(4_000, 9, generator=generator)
    rows = torch.zeros(4_000, 9)
    for unit, cause in {0: 0, 3: 0, 6: 0, 1: 1, 4: 1, 2: 2, 5: 3}.items():
        rows[:, unit] = strength[:, unit] * causes[:, cause]
    rows[:, 8] = strength[:, 8] * (torch.rand(4_000, generator=generator) < 0.3)
    return rows


def phi() -> np.ndarray:
    numbers = UnitNumbers(9)
    numbers.update(activations().T.reshape(1, 9, 40, 100), None)
    return numbers.co_activity()


def test_units_of_one_cause_are_one_cluster_and_units_alone_are_none() -> None:
    found = co_active_groups(phi(), 2)
    assert {frozenset(group.members) for group in found} == {frozenset({0, 3, 6}), frozenset({1, 4})}
    for group in found:
        assert group.strength > 0.95
        assert set(group.weights.nonzero()[:, 0].tolist()) == set(group.members)
        assert group.weights.norm() == pytest.approx(1)


def test_correlations_are_those_of_numpy() -> None:
    active = (activations() > 0).numpy().astype(float)
    alive = [0, 1, 2, 3, 4, 5, 6, 8]
    assert np.allclose(phi()[np.ix_(alive, alive)], np.corrcoef(active[:, alive].T), atol=1e-6)


def test_factors_find_the_causes() -> None:
    found = factor_groups(activations(), 5)
    members = [frozenset(group.members) for group in found]
    assert frozenset({0, 3, 6}) in members
    assert frozenset({1, 4}) in members
    assert sum(group.strength for group in found) == pytest.approx(1, abs=1e-4)
    assert found[0].members[0] in (0, 3, 6)


def test_the_map_has_groups_together() -> None:
    found = co_active_groups(phi(), 2)
    axes = draw_co_activity(phi(), found, "groups").axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        str(unit) for group in found for unit in group.members
    ]


def test_too_few_units_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        co_active_groups(np.full((3, 3), np.nan), 2)
