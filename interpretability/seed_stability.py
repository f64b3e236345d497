"""Do autoencoders that differ in their seed alone find the same directions?"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

_OFTEN = 1e-3  # share of inputs


def mean_best_cosine(
    one: Float[Tensor, "F D"], other: Float[Tensor, "G D"], chosen: Bool[Tensor, " F"]
) -> Float[Tensor, ""]:
    """Mean over some latents of one dictionary of the highest cosine with any latent of the other; not a number if
    none is chosen.

    Random dictionaries are no 0: of 128 latents in 32 dimensions about .45, of 1 024 in 256 about .2.

    Args:
        one, other: directions.
        chosen: latents of the first that count.
    """
    return (F.normalize(one[chosen], dim=1) @ F.normalize(other, dim=1).T).amax(1).mean()


def seed_cosines(
    directions: Mapping[str, Float[Tensor, "F D"]],
    frequencies: Mapping[str, Float[Tensor, " F"]],
    recipes: Mapping[str, Any],
) -> dict[str, float]:
    """How much of each autoencoder others of its recipe find again: `mean_best_cosine` of its latents that fire on at
    least 1 in 1 000 inputs, averaged over those others.

    Args:
        directions: of every autoencoder, by name.
        frequencies: share of inputs on which each of its latents fires.
        recipes: autoencoders with equal ones differ in their seed alone.

    Returns:
        By name; who has no others is left out.
    """
    found: dict[str, float] = {}
    for name, own in directions.items():
        others = [other for other in directions if other != name and recipes[other] == recipes[name]]
        often = frequencies[name] >= _OFTEN
        if others:
            found[name] = sum(float(mean_best_cosine(own, directions[other], often)) for other in others) / len(others)
    return found
