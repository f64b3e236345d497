import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from interpretability.value_counts import NUM_BINS, ValueCounts, bin_edges, binned_auc, value_bins


def activations(count: int, units: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(count, units, generator=generator).exp() * 3
    return values * (torch.rand(count, units, generator=generator) < 0.4)


def test_bins_hold_what_their_edges_say() -> None:
    values = torch.tensor([-1.0, 0.0, 2.0**-20, 0.37, 1.0, 1.0001, 255.0, 3e5])
    bins, edges = value_bins(values), bin_edges()
    assert len(edges) == NUM_BINS
    assert bins[:2].tolist() == [0, 0]
    for value, index in zip(values[2:].tolist(), bins[2:].tolist(), strict=True):
        assert edges[index - 1] <= value < edges[index]
    assert value_bins(torch.tensor([1e-30, 1e30])).tolist() == [1, NUM_BINS - 1]
    assert np.max(edges[1:] / edges[:-1]) < 1.01


def test_auc_equals_that_of_scikit_learn() -> None:
    raw = activations(3000, 3)
    present = torch.rand(3000, generator=torch.Generator().manual_seed(2)) < 0.1
    for values, tolerance in ((raw.bfloat16().float(), 1e-9), (raw, 1e-3)):
        some, everything = ValueCounts(3), ValueCounts(3)
        for rows in torch.arange(len(values)).split(700):
            everything.update(values[rows])
            some.update(values[rows][present[rows]])
        found = binned_auc(some.counts, everything.counts)
        expected = [roc_auc_score(present, values[:, unit]) for unit in range(3)]
        np.testing.assert_allclose(found, expected, atol=tolerance)
    assert all(math.isnan(auc) for auc in binned_auc(ValueCounts(3).counts, everything.counts))


def test_quantiles_and_histograms_are_those_of_the_values() -> None:
    values = activations(5000, 2)
    values[:, 1] = 0
    counts = ValueCounts(2)
    for batch in values.split(999):
        counts.update(batch)
    above = values[values[:, 0] > 0, 0]
    assert counts.active().tolist() == [len(above), 0]
    assert counts.counts.sum(1).tolist() == [5000, 5000]
    for share in (0.1, 0.5, 0.9):
        assert float(counts.quantile(share)[0]) == pytest.approx(float(above.quantile(share)), rel=0.012)
    assert math.isnan(float(counts.quantile(0.5)[1]))
    high = float(above.max())
    histogram = counts.histogram(0, high, 20)
    assert histogram.sum() == pytest.approx(len(above))
    np.testing.assert_allclose(histogram, np.histogram(above, 20, (0, high))[0], atol=25)
    assert counts.histogram(1, 0.0, 20).sum() == 0
