"""The minimum of linear probes' losses: L-BFGS for every target by itself, all in the same products with the features.

Steps are taken in the eigenvectors of the features' second moments. There the loss's curvature is nearly diagonal, its
mean second derivative by a score times the eigenvalue plus the penalty, whatever the penalty; L-BFGS begins with its
inverse (Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5), so that some five evaluations do where
plain L-BFGS takes hundreds. Step lengths and histories are each target's own: in one evaluation some take a new step
while others shorten one that was too long, and those that are done leave.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.probe_losses import Loss

_MAX_EVALUATIONS = 300
_MEMORY = 10
_LEAST_CURVATURE = 1e-3  # of a loss by a score, where classes are told apart for certain
_DESCENT, _SHORTEST = 1e-4, 1e-3  # share of the promised descent to insist on; step at which only rounding is left


class Spectrum(NamedTuple):
    """Eigenvalues [D] and eigenvectors [D D], in columns, of the features' second moments."""

    values: Float[Tensor, " D"]
    vectors: Float[Tensor, "D D"]


def spectrum(rows: Float[Tensor, "R D"]) -> Spectrum:
    """Of the rows' second moments; it only shapes the way to the minimum, so that some of the rows will do.

    Raises:
        ValueError: features that are not finite.
    """
    moments = rows.T @ rows / len(rows)
    if not math.isfinite(float(moments.sum())):
        raise ValueError("a probe's features are not finite: check the agent's weights, or probe in precision fp32")
    try:
        return Spectrum(*torch.linalg.eigh(moments))
    except torch.linalg.LinAlgError:  # in float32 it may not converge where many eigenvalues are all but 0
        return Spectrum(*(part.to(moments.dtype) for part in torch.linalg.eigh(moments.double())))


def scores(
    features: Float[Tensor, "R D"], weight: Float[Tensor, "O D"], bias: Float[Tensor, " O"]
) -> Float[Tensor, "R O"]:
    """Scores of all rows, each output's contiguous in memory as losses like them."""
    return torch.addmm(bias.unsqueeze(1), weight, features.T).T


class _Pair(NamedTuple):
    """A step and the change of gradient along it; `inverse` [T] of their product is 0 for targets that took none."""

    step: Float[Tensor, "O D"]
    change: Float[Tensor, "O D"]
    inverse: Float[Tensor, " T"]


def minimise(
    features: Float[Tensor, "R D"],
    loss: Loss,
    shape: Spectrum,
    strength: Float[Tensor, " T"],
    weight: Float[Tensor, "O D"],
    bias: Float[Tensor, " O"],
    tolerance: float,
) -> tuple[Float[Tensor, "O D"], Float[Tensor, " O"]]:
    """Weights and biases at the minimum for given penalties.

    Args:
        features, loss: of the same rows.
        shape: of the features' second moments, or nearly.
        strength: penalty of each target.
        weight, bias: where to start.
        tolerance: share of its loss that a target may end above its minimum, as slope and curvature tell.
    """
    found = torch.cat([weight @ shape.vectors, bias.unsqueeze(1)], 1)
    rounding = torch.finfo(found.dtype).eps
    # eigenvalues are no more certain than this, and collinear features have ones of nought
    spread = torch.cat([shape.values.clamp_min(0), shape.values.new_ones(1)])
    least = torch.cat([(rounding * shape.values.sum()).expand(len(shape.values)), shape.values.new_zeros(1)])
    live = torch.ones_like(strength, dtype=torch.bool)

    def evaluate(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value of each live target; gradient by the point; mean curvature by each score."""
        losses, derivative, curvature = loss(scores(features, point[:, :-1] @ shape.vectors.T, point[:, -1]))
        slope = torch.cat([derivative.T @ features @ shape.vectors, derivative.sum(0).unsqueeze(1)], 1)
        pull = penalties * point
        return losses + total(pull * point) / 2, slope + pull, curvature.clamp_min(_LEAST_CURVATURE)

    def total(values: Tensor) -> Float[Tensor, " T"]:
        return values.new_zeros(int(live.sum())).index_add_(0, owner, values.sum(1))

    def spread_penalties() -> tuple[Tensor, Tensor]:
        owner = loss.owner
        penalties = strength[live][owner].unsqueeze(1).repeat(1, found.shape[1])
        penalties[:, -1] = 0  # biases are free
        return owner, penalties

    owner, penalties = spread_penalties()
    columns = torch.arange(len(found), device=found.device)
    point = found.clone()
    value, gradient, curvature = evaluate(point)
    pairs: deque[_Pair] = deque(maxlen=_MEMORY)
    length, scale = torch.ones_like(value), torch.ones_like(value)
    way = -gradient / (curvature.unsqueeze(1) * spread + torch.maximum(penalties, least))
    descent = total(way * gradient)
    done = -descent / 2 <= tolerance * value
    for _ in range(_MAX_EVALUATIONS):
        if done.any():
            found[columns[done[owner]]] = point[done[owner]]
            if done.all():
                break
            keep, kept = ~done, ~done[owner]
            loss = loss.targets(keep)
            live = live.masked_scatter(live, keep)
            owner, penalties = spread_penalties()
            columns, point, gradient, way, curvature = (
                each[kept] for each in (columns, point, gradient, way, curvature)
            )
            value, length, descent, scale = (each[keep] for each in (value, length, descent, scale))
            pairs = deque((_Pair(s[kept], y[kept], r[keep]) for s, y, r in pairs), _MEMORY)
        step = length[owner].unsqueeze(1) * way
        next_value, next_gradient, next_curvature = evaluate(point + step)
        excess = next_value - value - length * descent
        # of values a few roundings apart none is known to be the lower
        taken = excess <= (_DESCENT - 1) * length * descent + 8 * rounding * value.abs()
        own = taken[owner].unsqueeze(1)
        change = next_gradient - gradient
        product = total(step * change)
        pairs.append(_Pair(step, change, torch.where(taken & (product > 0), 1 / product, 0.0)))
        point, gradient = torch.where(own, point + step, point), torch.where(own, next_gradient, gradient)
        curvature = torch.where(taken[owner], next_curvature, curvature)
        value = torch.where(taken, next_value, value)
        diagonal = curvature.unsqueeze(1) * spread + torch.maximum(penalties, least)
        scale = torch.where(taken & (product > 0), product / total(change.square() / diagonal), scale)
        way = torch.where(own, -_newton_step(gradient, pairs, diagonal / scale[owner].unsqueeze(1), owner, total), way)
        shorter = -length.square() * descent / (2 * excess)  # the least of the parabola through what is known
        length = torch.where(taken, 1.0, torch.minimum(torch.maximum(shorter, length / 10), length / 2))
        descent = total(way * gradient)
        done = torch.where(taken, -descent / 2 <= tolerance * value, ~(length >= _SHORTEST))
    found[columns] = point
    return found[:, :-1] @ shape.vectors.T, found[:, -1]


def _newton_step(
    gradient: Float[Tensor, "O D"],
    pairs: deque[_Pair],
    diagonal: Float[Tensor, "O D"],
    owner: Int[Tensor, " O"],
    total: Callable[[Tensor], Tensor],
) -> Float[Tensor, "O D"]:
    """The inverse of the curvature, as the diagonal and the pairs tell it, times the gradient."""

    def own(values: Tensor) -> Tensor:
        return values[owner].unsqueeze(1)

    rest = gradient.clone()
    shares = []
    for step, change, inverse in reversed(pairs):
        share = inverse * total(step * rest)
        rest -= own(share) * change
        shares.append(share)
    rest /= diagonal
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        rest += own(share - inverse * total(change * rest)) * step
    return rest
