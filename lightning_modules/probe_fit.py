"""Fitting linear probes: every target of one kind at once, down a path of penalties, to the minimum.

Minimised is, for each target, the mean loss over the rows that have an answer, plus strength / 2 x the squared length
of its weights; biases are free. For features of variance 1 this is scikit-learn's `LogisticRegression(C=1 / (strength
x rows))`, and `Ridge(alpha=strength x rows)`. All targets share one product with the features. The minimum is found by
L-BFGS in coordinates in which the features' second moments, with the penalty, are the identity: there softmax and
squared losses are so round that some ten evaluations do, where plain L-BFGS takes hundreds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

_MOMENT_ROWS = 20_480  # ten for each of 2 048 features: the moments only shape the way to the minimum
_MAX_STEPS = 200
_PATH_TOLERANCE, _LAST_TOLERANCE = 1e-4, 1e-5  # change of a target's loss, on average, at which to stop
_GAIN = 1e-3  # relative gain in validation loss that is worth a smaller penalty


class Loss(Protocol):
    """Losses of several targets on the same rows.

    Attributes:
        owner: target of each output [O].
        curvature: upper bound of the second derivative by a score.
    """

    owner: Int[Tensor, " O"]
    curvature: float

    def __call__(self, scores: Float[Tensor, "R O"]) -> tuple[Float[Tensor, " T"], Float[Tensor, "R O"]]:
        """Mean loss of each target, and its derivative by the scores."""

    def rows(self, chosen: Int[Tensor, " r"]) -> "Loss":
        """The losses on some of the rows."""

    def targets(self, chosen: Bool[Tensor, " T"]) -> "Loss":
        """The losses of some of the targets."""


class ClassLoss:
    """Cross entropy of softmax over each target's classes.

    Args:
        labels: [R T], -1 where there is no answer.
        sizes: classes of each target.
    """

    curvature = 0.25

    def __init__(self, labels: Int[Tensor, "R T"], sizes: Sequence[int]) -> None:
        self.labels, self.sizes = labels, list(sizes)
        self.owner = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).to(labels.device)
        self._counts = (labels >= 0).sum(0).clamp_min(1)

    def __call__(self, scores: Float[Tensor, "R O"]) -> tuple[Float[Tensor, " T"], Float[Tensor, "R O"]]:
        losses, derivative = [], torch.empty_like(scores)
        start = 0
        for target, size in enumerate(self.sizes):
            labels, count = self.labels[:, target], self._counts[target]
            logs = scores[:, start : start + size].log_softmax(1)
            losses.append(functional.nll_loss(logs, labels, ignore_index=-1, reduction="sum") / count)
            known = (labels >= 0).unsqueeze(1)
            chances = logs.exp_()
            chances.scatter_add_(1, labels.clamp_min(0).unsqueeze(1), -torch.ones_like(chances[:, :1]))
            derivative[:, start : start + size] = chances * (known / count)
            start += size
        return torch.stack(losses), derivative

    def rows(self, chosen: Int[Tensor, " r"]) -> "ClassLoss":
        return ClassLoss(self.labels[chosen], self.sizes)

    def targets(self, chosen: Bool[Tensor, " T"]) -> "ClassLoss":
        return ClassLoss(self.labels[:, chosen], _chosen(self.sizes, chosen))


class SquaredLoss:
    """Half the squared error, summed over each target's numbers.

    Args:
        values: [R O], NaN where there is no answer.
        sizes: numbers of each target.
    """

    curvature = 1.0

    def __init__(self, values: Float[Tensor, "R O"], sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.owner = torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes)).to(values.device)
        self._known = values.isfinite()
        self.values = values.nan_to_num(0.0)
        self._counts = self._known.sum(0).clamp_min(1)

    def __call__(self, scores: Float[Tensor, "R O"]) -> tuple[Float[Tensor, " T"], Float[Tensor, "R O"]]:
        errors = (scores - self.values) * self._known
        columns = errors.square().sum(0) / self._counts / 2
        losses = columns.new_zeros(len(self.sizes)).index_add_(0, self.owner, columns)
        return losses, errors / self._counts

    def rows(self, chosen: Int[Tensor, " r"]) -> "SquaredLoss":
        return SquaredLoss(self.values.where(self._known, torch.nan)[chosen], self.sizes)

    def targets(self, chosen: Bool[Tensor, " T"]) -> "SquaredLoss":
        values = self.values.where(self._known, torch.nan)
        return SquaredLoss(values[:, chosen[self.owner]], _chosen(self.sizes, chosen))


def _chosen(sizes: Sequence[int], chosen: Bool[Tensor, " T"]) -> list[int]:
    return [size for size, keep in zip(sizes, chosen.tolist(), strict=True) if keep]


@dataclass
class Fit:
    """What was found.

    Attributes:
        weight: [O D], for the features given.
        bias: [O].
        strength: chosen for each target [T].
        validation_loss: with it [T].
    """

    weight: Float[Tensor, "O D"]
    bias: Float[Tensor, " O"]
    strength: Float[Tensor, " T"]
    validation_loss: Float[Tensor, " T"]


def fit_path(
    features: Float[Tensor, "R D"],
    loss: Loss,
    validation: Float[Tensor, "V D"],
    validation_loss: Loss,
    strengths: Sequence[float],
    path_rows: int,
    seed: int = 0,
) -> Fit:
    """Go down the path of penalties, each fit starting at the last, and keep what validates best for each target.

    A target leaves the path where it no longer gains. It is walked on `path_rows` random rows; if there are more, the
    chosen fits go on from there on all rows. Their penalty is then as many times smaller, which weighs rows against it
    as before.

    Args:
        features: of training, of mean 0 and variance 1.
        loss: of the same rows.
        validation, validation_loss: what penalties are chosen on.
        strengths: penalties, falling.
        path_rows: rows on which they are chosen.
        seed: of the choice of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(features), generator=generator)[:path_rows].to(features.device)
    part = features if len(chosen) == len(features) else features[chosen]
    part_loss = loss if part is features else loss.rows(chosen)
    moments = _second_moments(part)
    owner, targets = loss.owner, int(loss.owner.max()) + 1
    best = Fit(
        features.new_zeros(len(owner), features.shape[1]),
        features.new_zeros(len(owner)),
        features.new_full((targets,), strengths[0]),
        features.new_full((targets,), torch.inf),
    )
    gaining = torch.ones(targets, dtype=torch.bool, device=owner.device)
    for strength in strengths:
        columns = gaining[owner]
        weight, bias = minimise(
            part, part_loss.targets(gaining), moments, best.strength.new_full((int(gaining.sum()),), strength),
            best.weight[columns], best.bias[columns], _PATH_TOLERANCE,
        )  # fmt: skip
        losses = validation_loss.targets(gaining)(validation @ weight.T + bias)[0]
        better = losses < best.validation_loss[gaining] * (1 - _GAIN)
        kept = better[owner[columns].unique_consecutive(return_inverse=True)[1]]
        gaining = gaining.masked_scatter(gaining, better)
        if not gaining.any():
            break
        best.weight[gaining[owner]], best.bias[gaining[owner]] = weight[kept], bias[kept]
        best.strength[gaining], best.validation_loss[gaining] = strength, losses[better]
    if part is not features:
        best.strength *= len(part) / len(features)
    best.weight, best.bias = minimise(features, loss, moments, best.strength, best.weight, best.bias, _LAST_TOLERANCE)
    best.validation_loss = validation_loss(validation @ best.weight.T + best.bias)[0]
    return best


def minimise(
    features: Float[Tensor, "R D"],
    loss: Loss,
    moments: Float[Tensor, "D D"],
    strength: Float[Tensor, " T"],
    weight: Float[Tensor, "O D"],
    bias: Float[Tensor, " O"],
    tolerance: float,
) -> tuple[Float[Tensor, "O D"], Float[Tensor, " O"]]:
    """Weights and biases at the minimum for given penalties.

    Args:
        features, loss: of the same rows.
        moments: second moments of the features, or nearly.
        strength: penalty of each target.
        weight, bias: where to start.
        tolerance: change of the mean of the targets' losses between two steps at which to stop.
    """
    penalties = strength[loss.owner]
    factors = [(penalties == value, _factor(loss.curvature * moments, float(value))) for value in penalties.unique()]

    def from_round(rounded: Tensor) -> Tensor:
        out = torch.empty_like(rounded)
        for columns, factor in factors:
            out[columns] = torch.linalg.solve_triangular(factor, rounded[columns], upper=False, left=False)
        return out

    def gradient_to_round(gradient: Tensor) -> Tensor:
        out = torch.empty_like(gradient)
        for columns, factor in factors:
            out[columns] = torch.linalg.solve_triangular(factor, gradient[columns].T, upper=False).T
        return out

    rounded = torch.empty_like(weight)
    for columns, factor in factors:
        rounded[columns] = weight[columns] @ factor
    scale = loss.curvature**0.5  # the bias in the same units
    rounded_bias = bias * scale
    optimiser = torch.optim.LBFGS(
        [rounded, rounded_bias],
        max_iter=_MAX_STEPS,
        tolerance_grad=1e-7,
        tolerance_change=tolerance * len(strength),
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> Tensor:
        weights = from_round(rounded)
        losses, derivative = loss(torch.addmm(rounded_bias / scale, features, weights.T))
        gradient = derivative.T @ features + penalties[:, None] * weights
        rounded.grad, rounded_bias.grad = gradient_to_round(gradient), derivative.sum(0) / scale
        return losses.sum() + (penalties * weights.square().sum(1)).sum() / 2

    with torch.no_grad():
        optimiser.step(evaluate)
        return from_round(rounded), rounded_bias / scale


def _factor(curvature: Float[Tensor, "D D"], strength: float) -> Float[Tensor, "D D"]:
    """Cholesky factor of the curvature with the penalty, or with as much more as its sums in float32 are uncertain by.

    It only shapes the way to the minimum, so that collinear features under a small penalty need no more.
    """
    total = float(curvature.trace())
    if not math.isfinite(total):
        raise ValueError("a probe's features are not finite: check the agent's weights, or probe in precision fp32")
    shift = max(strength, torch.finfo(torch.float32).eps * total)
    while True:
        factor, failed = torch.linalg.cholesky_ex(curvature + shift * torch.eye(len(curvature)).to(curvature))
        if not failed:
            return factor.float()
        shift *= 10


def _second_moments(features: Float[Tensor, "R D"]) -> Float[Tensor, "D D"]:
    rows = features[:_MOMENT_ROWS]
    return (rows.T @ rows).double() / len(rows)


def column_moments(values: Float[Tensor, "R O"]) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
    """Mean and std of the known values of each column; 0 and 1 where there is nothing, or it does not vary."""
    mean = values.nanmean(0).nan_to_num(0.0)
    std = (values - mean).square().nanmean(0).nan_to_num(0.0).sqrt()
    return mean, std.where(std > 0, 1.0)
