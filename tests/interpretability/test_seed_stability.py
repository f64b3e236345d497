import pytest
import torch

from interpretability.seed_stability import mean_best_cosine


def test_agrees_with_plain_loops() -> None:
    one, other = torch.randn(5, 3), torch.randn(7, 3)
    chosen = torch.tensor([True, False, True, True, False])
    best = [
        max(float(a @ b / (a.norm() * b.norm())) for b in other)
        for a, counts in zip(one, chosen, strict=True)
        if counts
    ]
    assert mean_best_cosine(one, other, chosen).item() == pytest.approx(sum(best) / 3, abs=1e-6)


def test_order_and_length_of_directions_do_not_matter() -> None:
    one = torch.randn(6, 4)
    other = one[torch.randperm(6)] * torch.rand(6, 1).add(0.1)
    assert mean_best_cosine(one, other, torch.ones(6, dtype=torch.bool)).item() == pytest.approx(1, abs=1e-6)
    assert mean_best_cosine(one, other, torch.zeros(6, dtype=torch.bool)).isnan()
