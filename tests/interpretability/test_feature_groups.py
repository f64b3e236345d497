import numpy as np
import pytest
import torch

from interpretability.feature_groups import (
    co_active_groups,
    co_activity_edges,
    draw_co_activity,
    draw_co_activity_graph,
    factor_groups,
)
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


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_clusters_are_whole_whatever_number_is_asked_for(groups: int) -> None:
    """Two triples, one pair of each closer than the rest, and a unit alone."""
    phi = np.full((7, 7), 0.05)
    phi[:3, :3] = phi[3:6, 3:6] = 0.85
    phi[0, 1] = phi[1, 0] = phi[3, 4] = phi[4, 3] = 0.95
    np.fill_diagonal(phi, 1)
    found = [sorted(group.members) for group in co_active_groups(phi, groups)]
    assert sorted(found) == [[0, 1, 2], [3, 4, 5]][: len(found)]
    assert len(found) == min(groups, 2)


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


def test_edges_join_units_of_one_cause_strongest_first() -> None:
    found = co_activity_edges(phi(), 0.5)
    assert {(edge.unit, edge.other) for edge in found} == {(0, 3), (0, 6), (3, 6), (1, 4)}
    strengths = [edge.phi for edge in found]
    assert strengths == sorted(strengths, reverse=True)
    active = (activations() > 0).numpy().astype(float)
    for edge in found:
        expected = np.corrcoef(active[:, edge.unit], active[:, edge.other])[0, 1]
        assert edge.phi == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        co_activity_edges(phi(), 0.0)


def test_the_graph_has_units_of_one_cause_close_together() -> None:
    groups, edges = co_active_groups(phi(), 2), co_activity_edges(phi(), 0.5)
    axes = draw_co_activity_graph(phi(), edges, groups, "graph").axes[0]
    units = [int(text.get_text()) for text in axes.texts]
    assert units == [0, 1, 3, 4, 6]
    assert len(axes.lines) == len(edges) == 4
    points = dict(zip(units, np.asarray(axes.collections[0].get_offsets()), strict=True))

    def distance(one: int, other: int) -> float:
        return float(np.linalg.norm(points[one] - points[other]))

    assert max(distance(0, 3), distance(3, 6), distance(1, 4)) < 0.3 * min(distance(0, 1), distance(6, 4))
    colours = dict(zip(units, axes.collections[0].get_facecolors().tolist(), strict=True))
    assert colours[0] == colours[3] == colours[6] != colours[1] == colours[4]
    assert draw_co_activity_graph(phi(), [], groups, "none").axes[0].texts[0].get_text() == "no two units are joined"
