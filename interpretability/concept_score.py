"""How well single units of a code stand for things of the game, choice and measurement on different levels."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from environments.heist import ENTITIES
from interpretability.statistics import Interval, bootstrap_of_sums
from interpretability.unit_numbers import entity_positions
from interpretability.value_counts import ValueCounts, binned_auc, value_bins


class Detectors(NamedTuple):
    """Units that were chosen to tell by their activation where an entity is, and what they are compared with.

    Attributes:
        units: number of the unit.
        negative: whether its negative values are meant.
        entities: number of the entity.
        sign: 1 where it is active at the entity, -1 where it is silent there.
        auc: on levels of odd seed, 1 is perfect either way.
        below: share of the positions without the entity that lie below each bin of values, equal ones counting half.
        above: share of those with the entity that lie above it, likewise.
    """

    units: Int[np.ndarray, " D"]
    negative: Bool[np.ndarray, " D"]
    entities: Int[np.ndarray, " D"]
    sign: Float[np.ndarray, " D"]
    auc: Float[np.ndarray, " D"]
    below: Float[Tensor, "D NUM_BINS"]
    above: Float[Tensor, "D NUM_BINS"]


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

    def entity_auc(self) -> float:
        """Mean over entities of the AUC of each one's own unit; an entity that a half does not show is left out."""
        distance, oriented, _ = self._choice()
        found: Shaped[np.ndarray, " K"] = oriented[np.arange(len(ENTITIES)), distance.argmax(1)]
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")

    def detectors(self) -> Detectors:
        """Every unit that was active on levels of even seed, for its own entity; the others stand for nothing."""
        distance, oriented, sign = self._choice()
        rows, units = self._own(distance)
        auc = oriented.reshape(len(ENTITIES) * 2, self._units)[rows, units]
        known = np.isfinite(auc)
        rows, units = rows[known], units[known]
        entities, negative = np.divmod(rows, 2)
        places = negative * self._units + units
        present = torch.stack([self._there[1][k].counts[p] for k, p in zip(entities, places, strict=True)]).double()
        absent = self._all[1].counts[torch.from_numpy(places)].double() - present
        below = (absent.cumsum(1) - absent / 2) / absent.sum(1, keepdim=True)
        above = 1 - (present.cumsum(1) - present / 2) / present.sum(1, keepdim=True)
        signs = sign.reshape(len(ENTITIES) * 2, self._units)[rows, units]
        return Detectors(units, negative.astype(bool), entities, signs, auc[known], below.float(), above.float())

    def _choice(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How far each unit's AUC for each entity is from chance on even levels, the AUC on odd ones, and its sign."""
        chosen, scored = (
            np.stack([binned_auc(counts.counts, self._all[half].counts) for counts in self._there[half]])
            for half in range(2)
        )
        distance = np.nan_to_num(np.abs(chosen - 0.5), nan=-1.0)
        up = chosen >= 0.5
        return distance, np.where(up, scored, 1 - scored), np.where(up, 1.0, -1.0)

    def _own(self, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each unit that was active on even levels, the row (entity x side) furthest from chance, and its number."""
        alive = np.flatnonzero((self._all[0].active().view(2, self._units).sum(0) > 0).numpy())
        return distance.reshape(len(ENTITIES) * 2, self._units).argmax(0)[alive], alive


class LevelAUC:
    """The same AUCs level by level, so that intervals over levels and differences between codes can be had.

    An AUC is the mean over positions with the entity of the share of the others that lie below. With the shares of all
    levels fixed, its value on a resample of levels is, to first order, the mean of `below` over positions with the
    entity plus the mean of `above` over those without, less the AUC (DeLong et al. 1988; by cluster, Obuchowski 1997).

    Args:
        detectors: whose.
    """

    def __init__(self, detectors: Detectors) -> None:
        self.detectors = detectors
        self._sums: dict[int, Tensor] = {}

    def update(
        self,
        maps: Float[Tensor, "B U H W"],
        cells: Int[Tensor, "B K 2"],
        world_dim: Int[Tensor, " B"],
        levels: Int[Tensor, " B"],
    ) -> None:
        """Take in a batch, as `ConceptScore` did; only levels of odd seed count."""
        odd = levels % 2 == 1
        if not odd.any():
            return
        found, here = self.detectors, maps.device
        values = maps[odd.to(here)][:, torch.from_numpy(found.units).to(here)].float().cpu()
        values = torch.where(torch.from_numpy(found.negative)[:, None, None], -values, values)
        present = entity_positions(cells[odd], world_dim[odd], *maps.shape[2:])
        there = present[torch.from_numpy(found.entities)].flatten(2)  # [D B HW]
        bins = value_bins(values).transpose(0, 1).flatten(2)
        below, above = (table.gather(1, bins.flatten(1)).view_as(bins) for table in (found.below, found.above))
        parts = [below * there, there.float(), above * ~there, (~there).float()]
        sums = torch.stack([part.sum(2, dtype=torch.float64) for part in parts], 2)  # [D B 4]
        for level in levels[odd].unique().tolist():
            own = sums[:, levels[odd] == level].sum(1)
            self._sums[level] = self._sums.get(level, torch.zeros(())) + own

    def sums(self) -> dict[int, Float[np.ndarray, "D 4"]]:
        """By level and detector: sum of `below` and number of positions with the entity, the same of the others."""
        return {level: sums.numpy() for level, sums in self._sums.items()}

    def mean_auc(self, sums: Float[np.ndarray, "R D*4"]) -> Float[np.ndarray, " R"]:
        """The mean over detectors of their AUCs on resamples of levels, from the sums over them."""
        with np.errstate(invalid="ignore", divide="ignore"):
            inside, positives, outside, negatives = np.moveaxis(sums.reshape(len(sums), -1, 4), 2, 0)
            plain = inside / positives + outside / negatives
        up = self.detectors.sign > 0
        auc = np.where(up, self.detectors.auc, 1 - self.detectors.auc)
        found = plain - auc
        oriented = np.where(up, found, 1 - found)
        known = np.isfinite(oriented)
        return np.where(known, oriented, 0).sum(1) / np.maximum(known.sum(1), 1)


def auc_over_levels(of: LevelAUC, less: LevelAUC | None = None) -> Interval:
    """The mean AUC over units with its interval over levels, or how far it is above another code's on the same levels.

    Raises:
        ValueError: codes that were not measured on the same levels.
    """
    both = [of] if less is None else [of, less]
    levels = sorted(of.sums())
    if any(sorted(each.sums()) != levels for each in both):
        raise ValueError("the two codes were measured on different levels: measure them on the same frames")
    if not levels or not all(len(each.detectors.auc) for each in both):
        return Interval(float("nan"), float("nan"), float("nan"))
    columns = [np.stack([each.sums()[level].ravel() for level in levels]) for each in both]
    split = columns[0].shape[1]

    def statistic(sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        value = of.mean_auc(sums[:, :split])
        return value if less is None else value - less.mean_auc(sums[:, split:])

    return bootstrap_of_sums(np.concatenate(columns, 1), statistic)
