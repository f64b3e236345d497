"""What does the level of one unit say of which entity is there: nothing, one entity's presence, or which of several?

Responses are read at one place of many levels, where each entity in turn is put, all else equal, and nothing last.
Whatever is chosen (whether an entity raises or lowers a unit, which of two lies higher, how responses are distributed)
is chosen on tuning levels; what is reported is measured on others.

Two entities are told apart by a unit if the area under the ROC curve of its level for the one against the other lies
above a bound in its whole 95 % interval. That interval is over levels: DeLong's, for responses paired by level
(DeLong et al. 1988, https://doi.org/10.2307/2531595; Obuchowski 1997, https://doi.org/10.2307/2533958).
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats
from sklearn.naive_bayes import GaussianNB

from interpretability.permutations import discoveries, enough_permutations, sign_flip_p, within_level_p
from interpretability.statistics import CONFIDENCE


class LevelAUC(NamedTuple):
    """Area under the ROC curve of each unit, with its 95 % bounds over levels."""

    value: Float[np.ndarray, " U"]
    low: Float[np.ndarray, " U"]
    high: Float[np.ndarray, " U"]


class EntityCode(NamedTuple):
    """What U units say of K entities.

    Attributes:
        effect: mean response to an entity less that to nothing, in standard deviations of a response over levels.
        p: of a permutation test by level of that difference, in the direction found on tuning levels.
        present: low bound of the area under the ROC curve of an entity against nothing; 0 where the test does not
            stand.
        apart: low bound of that of each two entities, the first before the second; the other half is 0.
        explained: share of the variance of responses to entities that lies between entities (eta squared).
        explained_p: of a permutation test in which the entities of each level change places.
        decoded: share of responses from which the entity is guessed rightly, by Gaussians fitted on tuning levels.
        decoded_by_level: the same for each test level.
        rank: eta squared on tuning levels, to choose by.
    """

    effect: Float[np.ndarray, "K U"]
    p: Float[np.ndarray, "K U"]
    present: Float[np.ndarray, "K U"]
    apart: Float[np.ndarray, "K K U"]
    explained: Float[np.ndarray, " U"]
    explained_p: Float[np.ndarray, " U"]
    decoded: Float[np.ndarray, " U"]
    decoded_by_level: Float[np.ndarray, "L U"]
    rank: Float[np.ndarray, " U"]

    def responds(self, bound: float) -> Bool[np.ndarray, "K U"]:
        """Whether a unit tells an entity from nothing: the whole interval of the area lies above a bound."""
        return self.present > bound

    def together(self, bound: float) -> Bool[np.ndarray, "K U"]:
        """Entities of the largest set that a unit responds to and tells apart in pairs, by its level alone.

        The first of several sets as large. With no entity that the unit responds to it is empty.
        """
        responds, apart = self.responds(bound), self.apart > bound
        found = np.zeros_like(responds)
        for size in range(1, len(responds) + 1):
            taken = np.zeros(responds.shape[1], dtype=bool)
            for members in combinations(range(len(responds)), size):
                passes = responds[list(members)].all(0) & ~taken
                for one, other in combinations(members, 2):
                    passes &= apart[one, other]
                found[:, passes] = False
                found[np.array(members)[:, None], np.flatnonzero(passes)] = True
                taken |= passes
        return found

    def tells(self, members: Sequence[int], bound: float) -> Bool[np.ndarray, " U"]:
        """Whether a unit responds to each of these entities and tells every two of them apart."""
        passes = self.responds(bound)[list(members)].all(0)
        for one, other in combinations(sorted(members), 2):
            passes &= self.apart[one, other] > bound
        return passes


def level_auc(one: Float[np.ndarray, "L U"], other: Float[np.ndarray, "L U"]) -> LevelAUC:
    """How often a response to the one entity is above one to the other, in any two levels; ties count half.

    A perfect separation has an interval without width.
    """
    levels = len(one)
    both = stats.rankdata(np.concatenate([one, other]), axis=0)
    above = (both[:levels] - stats.rankdata(one, axis=0)) / levels  # of each `one`: share of `other` below
    below = 1 - (both[levels:] - stats.rankdata(other, axis=0)) / levels
    value = above.mean(0)
    half = stats.norm.ppf((1 + CONFIDENCE) / 2) * (above + below).std(0, ddof=1) / np.sqrt(levels)
    return LevelAUC(value, np.clip(value - half, 0, 1), np.clip(value + half, 0, 1))


def variance_explained(values: Float[np.ndarray, "L K U"]) -> Float[np.ndarray, " U"]:
    """Eta squared: variance between the means of labels over that of all responses; 0 for a unit that never changes."""
    total = values.var((0, 1))
    return np.divide(values.mean(0).var(0), total, out=np.zeros_like(total), where=total > 0)


def entity_code(
    tuning: Float[np.ndarray, "T K1 U"],
    test: Float[np.ndarray, "L K1 U"],
    *,
    rate: float = 0.05,
    permutations: int = 999,
    seed: int = 0,
    progress: str | None = None,
) -> EntityCode:
    """What the units say.

    Args:
        tuning: responses to each entity, and to nothing last, on levels to choose by.
        test: likewise, on others.
        rate: of false discoveries.
        permutations: of the tests, or as many more as it takes that one test can stand by itself.
        seed: of the permutations.
        progress: title of a progress bar.
    """
    tuning, test = tuning.astype(np.float64), test.astype(np.float64)
    nothing, entities = test[:, -1], test[:, :-1]
    chosen = tuning.mean(0)
    sign = np.sign(chosen[:-1] - chosen[-1])
    differences = entities - nothing[:, None]
    p = sign_flip_p(sign * differences, enough_permutations(permutations, sign.size, rate), seed)
    found = [level_auc(sign[row] * entities[:, row], sign[row] * nothing) for row in range(len(sign))]
    present = np.where(discoveries(p, rate), np.stack([one.low for one in found]), 0.0)
    deviation = np.sqrt(test.var(0, ddof=1).mean(0))
    effect = np.divide(differences.mean(0), deviation, out=np.zeros_like(p), where=deviation > 0)
    count = len(sign)
    apart = np.zeros((count, count, test.shape[2]))
    for one, other in combinations(range(count), 2):
        order = np.sign(chosen[one] - chosen[other])
        apart[one, other] = level_auc(order * entities[:, one], order * entities[:, other]).low
    decoded = _decoded(tuning[:, :-1], entities)
    return EntityCode(
        effect,
        p,
        present,
        apart,
        variance_explained(entities),
        within_level_p(
            entities, variance_explained, enough_permutations(permutations, test.shape[2], rate), seed, progress
        ),
        decoded.mean(0),
        decoded,
        variance_explained(tuning[:, :-1]),
    )


def _decoded(tuning: Float[np.ndarray, "T K U"], test: Float[np.ndarray, "L K U"]) -> Float[np.ndarray, "L U"]:
    """Share of a level's entities that are guessed from one unit's level; units that never respond guess by chance."""
    labels = np.tile(np.arange(tuning.shape[1]), len(tuning))
    right = np.full((len(test), test.shape[2]), 1 / test.shape[1])
    for unit in np.flatnonzero(tuning.var((0, 1)) > 0):
        guess = GaussianNB().fit(tuning[..., unit].reshape(-1, 1), labels).predict(test[..., unit].reshape(-1, 1))
        right[:, unit] = (guess.reshape(len(test), -1) == np.arange(test.shape[1])).mean(1)
    return right
