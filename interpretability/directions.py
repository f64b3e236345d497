"""Which units tell in which direction the way to a key starts, and which only see where the key lies?

In `corner_scenes` two ways lead to the same place, so that the two questions come apart:

- first step: a unit's response where the way starts in a direction, less that in the same picture (player, key and gem
  in the same cells) where it starts along the other axis. Two quadrants have a way that starts to the right, say; both
  have to show it, or a filter for one shape of corner would pass.
- key side: the response where the key lies on that side, less that where it lies on the opposite one, the gem in the
  same cell and the way starting across in both; again for both ways across.
- plain: the response where the way starts in a direction, less that over all other scenes. It mixes the two, and the
  place of the gem, and is what a comparison of mean responses without matched scenes would find.

Differences are in standard deviations of a single response over levels, pooled over the scenes (Cohen's d, 1988): a
unit has to tell directions in whatever level it is met. They count at all only if they differ from 0 in a permutation
test in which the labels of whole levels are exchanged.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from environments.heist import DIRECTION_STEPS, QUADRANTS
from interpretability.permutations import discoveries, enough_permutations, sign_flip_p
from interpretability.statistics import CONFIDENCE, resampled_means

MEASURES: Final = ("first_step", "key_side", "plain")

_STEADY: Final = 1e-3  # of its largest difference: a unit that is the same in all levels is taken to vary so much

Contrasts = Float[np.ndarray, "L D P U"]
"""Differences of each level, for D directions, P pairs of scenes that all have to show it, and U units."""


class Selectivity(NamedTuple):
    """How selective U units are for D directions, in the order of `DIRECTIONS`.

    Attributes:
        effect: mean difference in standard deviations, the smallest of those that have to show it.
        low, high: 95 % bounds over levels, the standard deviation being taken as known.
        p: of a one-sided test by level, the largest of those that have to show it.
        stands: at a false-discovery rate over units and directions, and the effect large enough.
    """

    effect: Float[np.ndarray, "D U"]
    low: Float[np.ndarray, "D U"]
    high: Float[np.ndarray, "D U"]
    p: Float[np.ndarray, "D U"]
    stands: Bool[np.ndarray, "D U"]


class TapScores(NamedTuple):
    """Scores of a tap's units.

    Attributes:
        corner: by measure, in mazes that hold the way alone.
        detour: likewise where the other way round is open too, but for one cell.
        profile: mean response in each maze and scene, in standard deviations about the unit's mean.
        exchanged: `first_step` in corners, the labels of a random half of the levels exchanged.
    """

    corner: dict[str, Selectivity]
    detour: dict[str, Selectivity]
    profile: Float[np.ndarray, "2 4 2 U"]
    exchanged: Selectivity

    @property
    def directional(self) -> np.ndarray:
        """[D U]: selective for the first step in both mazes."""
        return self.corner["first_step"].stands & self.detour["first_step"].stands


def contrasts(responses: Float[np.ndarray, "L 4 2 2 U"]) -> dict[str, Contrasts]:
    """The differences of each level by name of the measure.

    Args:
        responses: in the scenes of `corner_scenes`: quadrant, axis of the first leg, axis of the gem.
    """
    each = responses.astype(np.float64)
    scenes = each.mean(3)
    found: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    for step in DIRECTION_STEPS:
        axis = 0 if step[0] else 1
        here = [index for index, quadrant in enumerate(QUADRANTS) if quadrant[axis] == step[axis]]
        there = [QUADRANTS.index(_opposite(QUADRANTS[index], axis)) for index in here]
        found["first_step"].append(scenes[:, here, axis] - scenes[:, here, 1 - axis])
        found["key_side"].append(each[:, here, 1 - axis, 1 - axis] - each[:, there, 1 - axis, 1 - axis])
        own = scenes[:, here, axis].sum(1, keepdims=True)
        others = scenes.sum((1, 2))[:, None] - own
        found["plain"].append(own / len(here) - others / (2 * len(QUADRANTS) - len(here)))
    return {name: np.stack(parts, 1) for name, parts in found.items()}


def pooled_deviation(responses: Float[np.ndarray, "L *S U"]) -> Float[np.ndarray, " U"]:
    """Standard deviation over levels of the response to one scene, its variance meaned over the scenes."""
    scenes = responses.reshape(len(responses), -1, responses.shape[-1]).astype(np.float64)
    return np.sqrt(scenes.var(0, ddof=1).mean(0))


def selectivity(
    differences: Contrasts,
    deviation: Float[np.ndarray, " U"],
    *,
    least: float = 0.8,
    rate: float = 0.05,
    permutations: int = 9_999,
    seed: int = 0,
) -> Selectivity:
    """Effects and tests of a measure.

    Args:
        differences: from `contrasts`.
        deviation: of the units; one that never responds is selective for nothing.
        least: the effect that it takes, in standard deviations. Cohen calls .8 large; with enough levels the least
            difference stands out from chance.
        rate: of false discoveries.
        permutations: of the test, or as many more as it takes that one can stand by itself.
        seed: of permutations and resamples.
    """
    unit = np.maximum(deviation, _STEADY * np.abs(differences).max((0, 1, 2)))
    unit = np.where(unit > 0, unit, np.inf)
    effect = (differences.mean(0) / unit).min(1)
    means = (resampled_means(differences, seed=seed) / unit).min(2)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    tests = differences.shape[1] * differences.shape[3]
    p = sign_flip_p(differences, enough_permutations(permutations, tests, rate), seed).max(1)
    return Selectivity(effect, low, high, p, discoveries(p, rate) & (effect >= least))


def exchanged(differences: Contrasts, seed: int) -> Contrasts:
    """The same with the labels of a random half of the levels exchanged: what is left is chance."""
    signs = np.random.default_rng(seed).integers(2, size=len(differences)) * 2.0 - 1
    return differences * signs[:, None, None, None]


def _opposite(quadrant: tuple[int, int], axis: int) -> tuple[int, int]:
    return (-quadrant[0], quadrant[1]) if axis == 0 else (quadrant[0], -quadrant[1])
