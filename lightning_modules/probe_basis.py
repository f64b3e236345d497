"""In which coordinates a probe is fitted: they decide what its penalty takes for simple."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_modules.principal_components import principal_components


class Basis(NamedTuple):
    """Features in other coordinates.

    Attributes:
        standardised: those it was made of, by split, [R D].
        features: by split, [R K].
        read_back: from weights for these [O K] to those for the features they were made of [O D].
    """

    standardised: Mapping[str, Float[Tensor, "R D"]]
    features: Mapping[str, Float[Tensor, "R K"]]
    read_back: Callable[[Float[Tensor, "O K"]], Float[Tensor, "O D"]]


def plain(features: Mapping[str, Float[Tensor, "R D"]]) -> Basis:
    """The features as they are."""
    return Basis(features, features, lambda weights: weights)


def leading_components(features: Mapping[str, Float[Tensor, "R D"]], std: Float[Tensor, " D"]) -> Basis:
    """The leading principal components alone: see `principal_components`."""
    mix = principal_components(features["training"], std)
    mixed = {split: values @ mix for split, values in features.items()}
    return Basis(features, mixed, lambda weights: weights @ mix.T)


def shared_over_positions(
    wide: Mapping[str, Float[Tensor, "R K"]], std: Float[Tensor, " D"], channels: int, sharing: float
) -> Basis:
    """The features and, beside them, each channel's mean over positions, `sharing` times as wide.

    A squared penalty then holds that a channel says the same wherever it is: what its weights have in common costs
    `sharing` squared times less than how they differ. It is the prior of a hierarchical model, a channel's weight drawn
    once and again at each position around it (Gelman et al., Bayesian Data Analysis, chapter 15). What can be read is
    the same, for the means are linear in the features.

    Args:
        wide: standardised maps, flattened with channels first, and behind them as many columns as there are channels,
            which the means are written to: a copy of all rows may not fit into memory.
        std: of the features before.
        channels: of the maps.
        sharing: standard deviation of the means as they are given to the fit.
    """
    size = len(std)
    average = torch.block_diag(*std.view(channels, -1, 1)) * channels / size
    features = {split: values[:, :size] for split, values in wide.items()}
    found = features["training"] @ average
    spread = found.std(0)
    scale = torch.where(spread > 0, sharing / spread, 0.0)
    for split, values in wide.items():
        values[:, size:] = (found if split == "training" else features[split] @ average) * scale

    def read_back(weights: Float[Tensor, "O K"]) -> Float[Tensor, "O D"]:
        own, shared = weights.split([size, channels], 1)
        return own + (shared * scale) @ average.T

    return Basis(features, wide, read_back)
