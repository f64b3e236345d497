"""How well single units of a code stand for things of the game, choice and measurement on different levels."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from environments.heist import ENTITIES
from interpretability.statistics import Interval, bootstrap_interval
from interpretability.unit_numbers import entity_positions
from interpretability.value_counts import ValueCounts, binned_auc


class Concepts(NamedTuple):
    """What units stand for.

    Attributes:
        per_unit: mean over units of the AUC for each unit's own entity; the interval is over units.
        per_entity: mean over entities of the AUC of each entity's own unit.
        of_entity: that AUC by entity; NaN for an entity that the frames of a half do not show.
        unit_of: the unit chosen for each entity.
    """

    per_unit: Interval
    per_entity: float
    of_entity: dict[str, float]
    unit_of: dict[str, int]


class ConceptScore:
    """Best-concept AUCs of units: does the activation at a position tell whether an entity is there?

    Which entity a unit stands for, which unit is an entity's, and whether the unit is active or silent there, is
    chosen on levels of even seed; the AUC that counts is that on levels of odd seed, so that trying many entities (or
    many units) gains nothing: units that stand for nothing come to .5. Negative values count as a unit of their own
    (principal components have no sign), the better side of which is chosen likewise.

    Args:
        units: U.
    """

    def __init__(self, units: int) -> None:
        self._units = units
        self._all = [ValueCounts(2 * units) for _ in range(2)]
        self._there = [[ValueCounts(2 * units) for _ in ENTITIES] for _ in range(2)]

    def update(
        self,
        maps: Float[Tensor, "B U H W"],
        cells: Int[Tensor, "B K 2"],
        world_dim: Int[Tensor, " B"],
        levels: Int[Tensor, " B"],
    ) -> None:
        """Take in a batch: maps of units over frames that show heist's whole world, and labels of the frames."""
        sides = torch.cat([maps.clamp(min=0), (-maps).clamp(min=0)], 1).float()
        rows = sides.permute(0, 2, 3, 1)
        present = entity_positions(cells, world_dim, *maps.shape[2:]).to(maps.device)
        for half in range(2):
            own = (levels % 2 == half).to(maps.device)
            if not own.any():
                continue
            self._all[half].update(rows[own].flatten(0, 2))
            for counts, mask in zip(self._there[half], present, strict=True):
                counts.update(rows[own][mask[own]])

    def compute(self) -> Concepts:
        """The scores so far; units that are never active on levels of even seed stand for nothing and are left out."""
        chosen, scored = (
            np.stack([binned_auc(counts.counts, self._all[half].counts) for counts in self._there[half]])
            for half in range(2)
        )
        alive = (self._all[0].active().view(2, self._units).sum(0) > 0).numpy()
        distance = np.nan_to_num(np.abs(chosen - 0.5), nan=-1.0)
        oriented = np.where(chosen >= 0.5, scored, 1 - scored)
        by_unit = distance.reshape(len(ENTITIES) * 2, self._units)
        own = oriented.reshape(len(ENTITIES) * 2, self._units)[by_unit.argmax(0), np.arange(self._units)]
        values = own[alive & np.isfinite(own)]
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        best = distance.argmax(1)
        found: Shaped[np.ndarray, " K"] = oriented[np.arange(len(ENTITIES)), best]
        return Concepts(
            bootstrap_interval(values) if len(values) else nothing,
            float(np.nanmean(found)) if np.isfinite(found).any() else float("nan"),
            dict(zip(ENTITIES, found.tolist(), strict=True)),
            dict(zip(ENTITIES, (best % self._units).tolist(), strict=True)),
        )
