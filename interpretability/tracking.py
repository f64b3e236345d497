"""Which units follow an entity? Maps of units while it is led around, the player and all else fixed.

A unit's response to the entity is how far its map departs, at each step of the walk, from its median over the walk:
what never changes (walls, background, the player) is no response. Two scores, both against the same walk with the
places in another order:

- equivariance: the mean cosine between the movement of the entity's place and that of the response's centroid, from
  each step to the next; a step at which there is no response to compare counts 0;
- overlap: the share of the response within one cell of the entity, meaned over the steps, none counting 0.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interpretability.permutations import discoveries, enough_permutations, permutation_p

_NOTHING = 1e-6  # of the largest response: less is none


class TrackingScores(NamedTuple):
    """Scores of C units on one set of walks.

    Attributes:
        equivariance: -1 to 1.
        overlap: 0 to 1.
        shuffled_equivariance, shuffled_overlap: their means under permuted places.
        tracks: whether both scores lie above those under permuted places, at a false-discovery rate over units.
    """

    equivariance: Float[np.ndarray, " C"]
    overlap: Float[np.ndarray, " C"]
    shuffled_equivariance: Float[np.ndarray, " C"]
    shuffled_overlap: Float[np.ndarray, " C"]
    tracks: np.ndarray


def responses(acts: Float[Tensor, "T C H W"]) -> Float[Tensor, "T C H W"]:
    """How far each unit's map departs from its median over the walk; what is next to nothing is nothing."""
    response = (acts.float() - acts.float().median(0).values).abs()
    return torch.where(response > _NOTHING * response.amax((0, 2, 3), keepdim=True), response, 0.0)


def centroids(response: Float[Tensor, "T C H W"]) -> tuple[Float[Tensor, "T C 2"], Float[Tensor, "T C"]]:
    """Centre of mass (x, y) of each map, in its own pixels with y downwards, and its mass."""
    height, width = response.shape[2:]
    mass = response.sum((2, 3))
    x = (response.sum(2) * (torch.arange(width) + 0.5)).sum(-1)
    y = (response.sum(3) * (torch.arange(height) + 0.5)).sum(-1)
    return torch.stack([x, y], -1) / mass.clamp(min=1e-12)[..., None], mass


def equivariance(
    places: Float[Tensor, "R T 2"], centres: Float[Tensor, "T C 2"], mass: Float[Tensor, "T C"]
) -> Float[Tensor, "R C"]:
    """Mean cosine between the movements of R orders of places and of the centroids, around the closed walk."""
    moves = places.roll(-1, 1) - places
    shifts = centres.roll(-1, 0) - centres
    known = (mass > 0) & (mass.roll(-1, 0) > 0)
    moves = moves / moves.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    length = shifts.norm(dim=-1, keepdim=True)
    shifts = torch.where((length > 1e-6) & known[..., None], shifts / length.clamp(min=1e-12), 0.0)
    return torch.einsum("rtk,tck->rc", moves, shifts) / len(centres)


def overlap(
    places: Float[Tensor, "S 2"], response: Float[Tensor, "T C H W"], radius: tuple[float, float]
) -> Float[Tensor, "T S C"]:
    """Share of each step's response within a box of `radius` (x, y) pixels around each place."""
    height, width = response.shape[2:]
    near_x = ((torch.arange(width) + 0.5 - places[:, :1]).abs() <= radius[0]).float()
    near_y = ((torch.arange(height) + 0.5 - places[:, 1:]).abs() <= radius[1]).float()
    share = response / response.sum((2, 3), keepdim=True).clamp(min=1e-12)
    return torch.einsum("tcsw,sw->tsc", torch.einsum("tchw,sh->tcsw", share, near_y), near_x)


def tracking_scores(
    walks: list[Float[Tensor, "T C H W"]],
    places: list[Float[np.ndarray, "T 2"]],
    world: int,
    *,
    shuffles: int = 999,
    rate: float = 0.05,
    seed: int = 0,
) -> TrackingScores:
    """Scores of the units, meaned over walks.

    Args:
        walks: maps of the units at each place of each walk; the maps lie over the whole frame.
        places: (x, y) of the entity in cells, y upwards, at each of them.
        world: cells a side of the world.
        shuffles: orders of the places that the scores are held against, or as many more as it takes that one unit can
            stand by itself.
        rate: of false discoveries among the units said to track (Benjamini and Hochberg 1995).
        seed: of the shuffles.

    Raises:
        ValueError: no walk, or one with as many maps as it has not places.
    """
    if not walks or any(len(acts) != len(where) for acts, where in zip(walks, places, strict=True)):
        raise ValueError("tracking needs at least one walk, and a place for each of its maps")
    rng = np.random.default_rng(seed)
    shuffles = enough_permutations(shuffles, walks[0].shape[1], rate)
    scores = torch.zeros(2, 1 + shuffles, walks[0].shape[1])
    for acts, where in zip(walks, places, strict=True):
        height, width = acts.shape[2:]
        orders = np.stack([np.arange(len(where)), *(rng.permutation(len(where)) for _ in range(shuffles))])
        on_map = np.stack([where[:, 0] / world * width, (world - where[:, 1]) / world * height], 1)
        shown, response = torch.from_numpy(on_map).float(), responses(acts)
        near = overlap(shown, response, (width / world, height / world))
        scores[0] += equivariance(shown[orders], *centroids(response)) / len(walks)
        scores[1] += near[np.arange(len(where)), orders].mean(1) / len(walks)
    found, null = scores[:, 0].numpy(), scores[:, 1:].numpy()
    p = permutation_p(found, null.swapaxes(0, 1))
    silent = found[1] == 0
    worst = np.where(silent, 1.0, p.max(0))
    chance = null.mean(1)
    return TrackingScores(found[0], found[1], chance[0], chance[1], discoveries(worst, rate))
