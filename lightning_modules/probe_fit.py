"""Fitting linear probes: all targets at once, down a path of penalties, to the minimum.

Minimised is, for each target, the mean loss over the rows that have an answer, plus strength / 2 x the squared length
of its weights; biases are free. For features of variance 1 this is scikit-learn's `LogisticRegression(C=1 / (strength
x rows))`, and `Ridge(alpha=strength x rows)`. All targets share two products with the features an evaluation; each
descends by itself (`lightning_modules.probe_descent`) and leaves the products when it is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.probe_descent import minimise, scores, spectrum
from lightning_modules.probe_losses import Loss

_MOMENT_ROWS = 20_480  # ten for each of 2 048 features: the moments only shape the way to the minimum
_GAIN = 1e-3  # relative gain in validation loss that is worth a smaller penalty
_PATH_TOLERANCE, _LAST_TOLERANCE = _GAIN / 2, 1e-5  # share of its loss that a target may still lie above its minimum


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

    def split(self, outputs: Sequence[int], targets: Sequence[int]) -> "list[Fit]":
        """What was found for the first so many outputs and targets, for the next, and so on."""
        parts = zip(self.weight.split(list(outputs)), self.bias.split(list(outputs)), strict=True)
        chosen = zip(self.strength.split(list(targets)), self.validation_loss.split(list(targets)), strict=True)
        return [Fit(*part, *choice) for part, choice in zip(parts, chosen, strict=True)]


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
    shape = spectrum(part[:_MOMENT_ROWS])
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
            part, part_loss.targets(gaining), shape, best.strength.new_full((int(gaining.sum()),), strength),
            best.weight[columns], best.bias[columns], _PATH_TOLERANCE,
        )  # fmt: skip
        losses = validation_loss.targets(gaining)(scores(validation, weight, bias))[0]
        better = losses < best.validation_loss[gaining] * (1 - _GAIN)
        kept = better[owner[columns].unique_consecutive(return_inverse=True)[1]]
        gaining = gaining.masked_scatter(gaining, better)
        if not gaining.any():
            break
        best.weight[gaining[owner]], best.bias[gaining[owner]] = weight[kept], bias[kept]
        best.strength[gaining], best.validation_loss[gaining] = strength, losses[better]
    if part is not features:
        best.strength *= len(part) / len(features)
    best.weight, best.bias = minimise(features, loss, shape, best.strength, best.weight, best.bias, _LAST_TOLERANCE)
    best.validation_loss = validation_loss(scores(validation, best.weight, best.bias))[0]
    return best
