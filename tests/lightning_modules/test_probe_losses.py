"""Losses against PyTorch's own, and of several kinds side by side."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lightning_modules.probe_descent import minimise, scores, spectrum
from lightning_modules.probe_losses import ClassLoss, JoinedLoss, SquaredLoss

ROWS = 200


def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of two targets of classes and two of numbers, with their answers, some unknown."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack(
        [torch.randint(3, (ROWS,), generator=generator), torch.randint(2, (ROWS,), generator=generator)]
    )
    labels[0, ::3] = -1
    values = torch.randn(ROWS, 3, generator=generator)
    values[::4, 2] = torch.nan
    return torch.randn(ROWS, 8, generator=generator), labels.T, values


def test_losses_derivatives_and_curvatures_are_those_of_automatic_differentiation() -> None:
    given, labels, values = planted()
    loss = JoinedLoss([ClassLoss(labels, [3, 2]), SquaredLoss(values, [2, 1])])

    def expected(x: torch.Tensor) -> torch.Tensor:
        known = values[:, 2].isfinite()
        return torch.stack(
            [
                functional.cross_entropy(x[:, :3], labels[:, 0], ignore_index=-1),
                functional.cross_entropy(x[:, 3:5], labels[:, 1]),
                (x[:, 5:7] - values[:, :2]).square().sum(1).mean() / 2,
                (x[known, 7] - values[known, 2]).square().mean() / 2,
            ]
        )

    found = loss(given)
    torch.testing.assert_close(found.losses, expected(given))
    torch.testing.assert_close(found.derivative, torch.autograd.functional.jacobian(expected, given).sum(0))
    hessian = torch.autograd.functional.hessian(lambda x: expected(x).sum(), given)
    second = torch.stack([hessian[:, output, :, output].sum() for output in range(8)])
    torch.testing.assert_close(found.curvature, second)
    assert loss.owner.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    some = loss.targets(torch.tensor([False, True, False, True]))
    torch.testing.assert_close(some(given[:, [3, 4, 7]]).losses, found.losses[[1, 3]])
    rows = torch.arange(0, ROWS, 2)
    only_classes = loss.targets(torch.tensor([True, True, False, False])).rows(rows)
    wanted = functional.cross_entropy(given[rows, 3:5], labels[rows, 1])
    torch.testing.assert_close(only_classes(given[rows, :5]).losses[1], wanted)


def test_targets_end_where_each_ends_by_itself() -> None:
    """Though their penalties differ, and the first are long done when the last is."""
    _, labels, values = planted()
    features = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))
    shape = spectrum(features)
    parts = [ClassLoss(labels[:, :1], [3]), ClassLoss(labels[:, 1:], [2]), SquaredLoss(values, [2, 1])]
    strength = torch.tensor([1.0, 1e-4, 0.1, 0.01])
    weight, bias = minimise(features, JoinedLoss(parts), shape, strength, torch.zeros(8, 6), torch.zeros(8), 1e-9)
    assert scores(features, weight, bias).shape == (ROWS, 8)
    outputs, targets = [3, 2, 3], [1, 1, 2]
    for part, one, own, own_bias in zip(
        parts, strength.split(targets), weight.split(outputs), bias.split(outputs), strict=True
    ):
        alone = minimise(features, part, shape, one, torch.zeros_like(own), torch.zeros_like(own_bias), 1e-9)
        torch.testing.assert_close(own, alone[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(own_bias, alone[1], atol=1e-3, rtol=1e-3)


def test_moments_whose_eigenvalues_are_not_found_in_float32_are_taken_apart_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.randn(7, 12, generator=torch.Generator().manual_seed(0))  # fewer than features
    eigh, precisions = torch.linalg.eigh, []

    def fails_in_float32(matrix: Tensor) -> Any:
        precisions.append(matrix.dtype)
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_in_float32)
    values, vectors = spectrum(rows)
    assert precisions == [torch.float32, torch.float64]
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, rows.T @ rows / 7)
