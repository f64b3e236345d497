"""What linear probes minimise: losses of many targets on the same rows, with their first and mean second derivatives.

Scores are rows by outputs; those whose outputs are contiguous in memory (the transpose of outputs by rows) are fastest,
many times for classes: a target's softmax then runs along the rows.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Slope(NamedTuple):
    """Losses at some scores, and how they change with them.

    Attributes:
        losses: mean of each target over the rows that have an answer.
        derivative: of each target's loss by its scores.
        curvature: mean second derivative of a row's loss by each score, over the same rows.
    """

    losses: Float[Tensor, " T"]
    derivative: Float[Tensor, "R O"]
    curvature: Float[Tensor, " O"]


class Loss(Protocol):
    """Losses of several targets on the same rows.

    Attributes:
        owner: target of each output [O].
    """

    owner: Int[Tensor, " O"]

    def __call__(self, scores: Float[Tensor, "R O"]) -> Slope:
        """Losses and their derivatives."""

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

    def __init__(self, labels: Int[Tensor, "R T"], sizes: Sequence[int]) -> None:
        self.labels, self.sizes = labels, list(sizes)
        self.owner = _owner(self.sizes, labels)
        known = labels.T >= 0
        self._weights = known / known.sum(1, keepdim=True).clamp_min(1)
        self._answers = labels.T.clamp_min(0).contiguous()

    def __call__(self, scores: Float[Tensor, "R O"]) -> Slope:
        losses, curvature = [], []
        derivative = torch.empty_like(scores.T)
        blocks = zip(scores.T.split(self.sizes), derivative.split(self.sizes), strict=True)
        for block, slope, answers, weights in zip(
            *zip(*blocks, strict=True), self._answers, self._weights, strict=True
        ):
            logs = block.log_softmax(0)
            right = answers.unsqueeze(0)
            losses.append(-logs.gather(0, right)[0] @ weights)
            chances = logs.exp_()
            curvature.append((chances * (1 - chances)) @ weights)
            chances.scatter_add_(0, right, chances.new_full(right.shape, -1.0))
            torch.mul(chances, weights, out=slope)
        return Slope(torch.stack(losses), derivative.T, torch.cat(curvature))

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

    def __init__(self, values: Float[Tensor, "R O"], sizes: Sequence[int]) -> None:
        self.values, self.sizes = values, list(sizes)
        self.owner = _owner(self.sizes, values)
        known = values.T.isfinite()
        self._weights = known / known.sum(1, keepdim=True).clamp_min(1)
        self._answers = values.T.nan_to_num(0.0)

    def __call__(self, scores: Float[Tensor, "R O"]) -> Slope:
        errors = scores.T - self._answers
        derivative = errors * self._weights
        columns = (errors * derivative).sum(1) / 2
        losses = columns.new_zeros(len(self.sizes)).index_add_(0, self.owner, columns)
        return Slope(losses, derivative.T, torch.ones_like(columns))

    def rows(self, chosen: Int[Tensor, " r"]) -> "SquaredLoss":
        return SquaredLoss(self.values[chosen], self.sizes)

    def targets(self, chosen: Bool[Tensor, " T"]) -> "SquaredLoss":
        return SquaredLoss(self.values[:, chosen[self.owner]], _chosen(self.sizes, chosen))


class JoinedLoss:
    """Losses of several kinds side by side: targets and outputs of the first, then of the second, and so on.

    Args:
        parts: losses on the same rows.
    """

    def __init__(self, parts: Sequence[Loss]) -> None:
        self._parts = list(parts)
        self._targets = [int(part.owner.max()) + 1 for part in parts]
        starts = [sum(self._targets[:index]) for index in range(len(parts))]
        self.owner = torch.cat([part.owner + start for part, start in zip(parts, starts, strict=True)])

    def __call__(self, scores: Float[Tensor, "R O"]) -> Slope:
        blocks = scores.T.split([len(part.owner) for part in self._parts])
        found = [part(block.T) for part, block in zip(self._parts, blocks, strict=True)]
        losses, derivatives, curvatures = zip(*found, strict=True)
        return Slope(torch.cat(losses), torch.cat([each.T for each in derivatives]).T, torch.cat(curvatures))

    def rows(self, chosen: Int[Tensor, " r"]) -> "JoinedLoss":
        return JoinedLoss([part.rows(chosen) for part in self._parts])

    def targets(self, chosen: Bool[Tensor, " T"]) -> "JoinedLoss":
        parts = zip(self._parts, chosen.split(self._targets), strict=True)
        return JoinedLoss([part.targets(some) for part, some in parts if some.any()])


def _owner(sizes: Sequence[int], like: Tensor) -> Int[Tensor, " O"]:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(like.device)


def _chosen(sizes: Sequence[int], chosen: Bool[Tensor, " T"]) -> list[int]:
    return [size for size, keep in zip(sizes, chosen.tolist(), strict=True) if keep]
