"""Fits against scikit-learn on the same features, and what there is to find in signal and in noise."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from lightning_modules.probe_descent import minimise, spectrum
from lightning_modules.probe_fit import fit_path
from lightning_modules.probe_losses import ClassLoss, SquaredLoss

ROWS, FEATURES = 2_000, 30


def standardised(seed: int, rows: int = ROWS, features: int = FEATURES) -> Tensor:
    """Correlated features of mean 0 and variance 1."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, features, generator=generator) @ torch.randn(features, features, generator=generator)
    return (mixed - mixed.mean(0)) / mixed.std(0)


def class_labels(features: Tensor, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = features @ torch.randn(features.shape[1], classes, generator=generator) / 3
    return torch.multinomial(scores.softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("strength", [0.3, 0.003])
def test_logistic_regression_agrees_with_scikit_learn(strength: float) -> None:
    """Two targets at once, one of them with rows that have no answer."""
    features = standardised(0)
    labels = torch.stack([class_labels(features, 4, 1), class_labels(features, 3, 2)], 1)
    labels[::3, 1] = -1
    loss = ClassLoss(labels, [4, 3])
    weight, bias = minimise(
        features, loss, spectrum(features), torch.full((2,), strength),
        torch.zeros(7, FEATURES), torch.zeros(7), tolerance=1e-10,
    )  # fmt: skip
    for target, columns in enumerate((slice(0, 4), slice(4, 7))):
        known = labels[:, target] >= 0
        x, y = features[known].double().numpy(), labels[known, target].numpy()
        peer = LogisticRegression(C=1 / (strength * len(y)), tol=1e-8, max_iter=5_000).fit(x, y)
        np.testing.assert_allclose(weight[columns], peer.coef_, atol=1e-3)
        ours = (features[known] @ weight[columns].T + bias[columns]).softmax(1)
        np.testing.assert_allclose(ours, peer.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize("strength", [0.3, 0.003])
def test_ridge_agrees_with_scikit_learn(strength: float) -> None:
    features = standardised(3)
    values = features @ torch.randn(FEATURES, 3, generator=torch.Generator().manual_seed(4))
    values = values / values.std(0) + torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(5))
    values[::4, 2] = torch.nan
    weight, bias = minimise(
        features, SquaredLoss(values, [2, 1]), spectrum(features),
        torch.full((2,), strength), torch.zeros(3, FEATURES), torch.zeros(3), tolerance=1e-10,
    )  # fmt: skip
    for column in range(3):
        known = values[:, column].isfinite()
        peer = Ridge(alpha=strength * int(known.sum())).fit(features[known].double(), values[known, column].double())
        np.testing.assert_allclose(weight[column], peer.coef_, atol=1e-3)
        assert float(bias[column]) == pytest.approx(float(peer.intercept_), abs=1e-3)


def test_the_path_chooses_as_scikit_learn_would_on_the_validation_rows() -> None:
    both = standardised(6, 900)
    features, held_out = both[:300], both[300:]
    labels = class_labels(both * 0.3, 3, 8).unsqueeze(1)
    strengths = (1.0, 0.1, 0.01, 0.001, 0.0001)
    fit = fit_path(
        features, ClassLoss(labels[:300], [3]), held_out, ClassLoss(labels[300:], [3]), strengths, path_rows=300
    )
    losses = []
    for strength in strengths:
        peer = LogisticRegression(C=1 / (strength * 300), tol=1e-8, max_iter=5_000).fit(features, labels[:300, 0])
        chances = peer.predict_proba(held_out)[np.arange(600), labels[300:, 0]]
        losses.append(-np.log(chances).mean())
    assert float(fit.strength) == pytest.approx(strengths[int(np.argmin(losses))])
    assert float(fit.validation_loss) == pytest.approx(min(losses), abs=1e-3)


def test_the_path_on_a_part_of_the_rows_ends_at_the_minimum_on_all() -> None:
    features = standardised(9)
    labels = class_labels(features, 3, 10).unsqueeze(1)
    fit = fit_path(features, ClassLoss(labels, [3]), features, ClassLoss(labels, [3]), (0.1, 0.01), path_rows=ROWS // 4)
    assert float(fit.strength) == pytest.approx(0.01 / 4)
    peer = LogisticRegression(C=1 / (float(fit.strength) * ROWS), tol=1e-8, max_iter=5_000).fit(features, labels[:, 0])
    ours = (features @ fit.weight.T + fit.bias).softmax(1)
    np.testing.assert_allclose(ours, peer.predict_proba(features), atol=5e-3)
    assert float((ours.argmax(1) == torch.from_numpy(peer.predict(features))).float().mean()) > 0.998


def test_a_planted_signal_is_found_exactly() -> None:
    features, held_out = standardised(11, 2 * ROWS).split(ROWS)
    planted = torch.randn(FEATURES, generator=torch.Generator().manual_seed(13))

    def answers(x: Tensor) -> tuple[Tensor, Tensor]:
        scores = x @ planted
        return (scores > 0).long().unsqueeze(1), (scores / 5).unsqueeze(1)

    (labels, values), (held_labels, held_values) = answers(features), answers(held_out)
    strengths = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
    fit = fit_path(features, ClassLoss(labels, [2]), held_out, ClassLoss(held_labels, [2]), strengths, ROWS)
    found = (held_out @ fit.weight.T + fit.bias).argmax(1)
    assert float((found == held_labels[:, 0]).float().mean()) > 0.99
    difference = fit.weight[1] - fit.weight[0]
    assert float(torch.cosine_similarity(difference, planted, 0)) > 0.99
    ridge = fit_path(features, SquaredLoss(values, [1]), held_out, SquaredLoss(held_values, [1]), strengths, ROWS)
    errors = held_out @ ridge.weight.T + ridge.bias - held_values
    assert float(1 - errors.var() / held_values.var()) > 0.9999


def test_nothing_is_found_in_noise() -> None:
    features, held_out = standardised(14, 2 * ROWS).split(ROWS)
    labels = torch.randint(4, (2 * ROWS, 1), generator=torch.Generator().manual_seed(16))
    fit = fit_path(
        features, ClassLoss(labels[:ROWS], [4]), held_out, ClassLoss(labels[ROWS:], [4]), (1.0, 0.1, 0.01), ROWS
    )
    fresh = standardised(17)
    answers = torch.randint(4, (ROWS,), generator=torch.Generator().manual_seed(18))
    accuracy = float(((fresh @ fit.weight.T + fit.bias).argmax(1) == answers).float().mean())
    assert abs(accuracy - 0.25) < 2.6 * (0.25 * 0.75 / ROWS) ** 0.5
    assert float(fit.strength) == 1.0, "a probe of noise is held as short as can be"


def test_collinear_features_under_a_small_penalty_agree_with_scikit_learn() -> None:
    """Wide combinations of other features stand beside them, as where positions share a weight."""
    features = standardised(8, rows=400, features=40)
    features = torch.cat([features, 30 * features @ torch.randn(40, 40, generator=torch.Generator().manual_seed(9))], 1)
    labels = class_labels(features[:, :40], 3, 10)
    loss, strength = ClassLoss(labels[:, None], [3]), 1e-5
    moments = (features.T @ features).double() / len(features)
    with pytest.raises(RuntimeError):
        torch.linalg.cholesky(0.25 * moments + strength * torch.eye(80))
    weight, bias = minimise(
        features, loss, spectrum(features), torch.tensor([strength]), torch.zeros(3, 80), torch.zeros(3), tolerance=1e-9
    )
    peer = LogisticRegression(C=1 / (strength * len(labels)), tol=1e-8, max_iter=20_000)
    peer.fit(features.double().numpy(), labels.numpy())
    ours = float(loss(features @ weight.T + bias)[0]) + strength / 2 * float(weight.square().sum())
    scores = torch.from_numpy(peer.decision_function(features.double().numpy())).float()
    best = float(loss(scores)[0]) + strength / 2 * float(np.square(peer.coef_).sum())
    assert ours < best + 1e-3


def test_features_that_are_not_finite_are_named() -> None:
    features = standardised(0)
    features[3, 4] = torch.nan
    loss = ClassLoss(torch.zeros(ROWS, 1, dtype=torch.int64), [2])
    with pytest.raises(ValueError, match="not finite"):
        fit_path(features, loss, features, loss, (0.1,), ROWS)
