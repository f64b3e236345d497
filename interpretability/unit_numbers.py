"""What a unit is for, in numbers, out of a stream of labelled frames."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from environments.heist import ENTITIES
from environments.heist.oracle import DIRECTIONS
from interpretability.value_counts import ValueCounts, binned_auc

_CONSTANT = 1e-12  # share of the mean square that rounding makes of no variance


class UnitNumbers:
    """Gathers numbers of every unit of a tap, in memory that does not grow with the stream.

    Args:
        units: U.
        signed: whether they fall below 0, so that what goes together is told from the activations themselves. Counts,
            frequencies and AUCs see what lies above 0 alone: units for the other side are the negatives.

    Attributes:
        values: counts of activations at all positions.
        peaks: counts of each frame's highest activation.
        together: at how many positions each two units are above 0 at once; of signed units the sums of their products.
    """

    def __init__(self, units: int, signed: bool = False) -> None:
        self._signed = signed
        self.values, self.peaks = ValueCounts(units), ValueCounts(units)
        self._at_entity = [ValueCounts(units) for _ in ENTITIES]
        self.together = torch.zeros(units, units, dtype=torch.float64)
        self._of_each = torch.zeros(units, dtype=torch.float64)
        self._sums = torch.zeros(units, dtype=torch.float64)
        self._squares = torch.zeros(units, dtype=torch.float64)
        self._direction_sums = torch.zeros(len(DIRECTIONS), units, dtype=torch.float64)
        self._direction_frames = torch.zeros(len(DIRECTIONS), dtype=torch.float64)
        self._active_sums = torch.zeros(units, dtype=torch.float64)

    def update(
        self, maps: Float[Tensor, "B U H W"], labels: Mapping[str, Tensor] | None = None, whole_world: bool = True
    ) -> None:
        """Take in a batch.

        Args:
            maps: activations; a flat tap's as maps of 1 x 1.
            labels: heist's, see `environments.heist.Labels`; without them, AUCs and directions stay unknown.
            whole_world: whether the frame shows heist's whole world, so that cells have places on the map.
        """
        maps = maps.float()
        rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
        self.values.update(rows)
        self.peaks.update(maps.amax((2, 3)))
        self._active_sums += rows.clamp(min=0).sum(0, dtype=torch.float32).cpu()
        kept = rows.double() if self._signed else (rows > 0).float()
        self.together += (kept.T @ kept).cpu()  # whole numbers below 2^24 in a batch: exact
        self._of_each += kept.sum(0, dtype=torch.float64).cpu()
        if labels is None:
            return
        if whole_world:
            present = entity_positions(labels["cells"], labels["world_dim"], *maps.shape[2:]).flatten(1).to(maps.device)
            for counts, mask in zip(self._at_entity, present, strict=True):
                counts.update(rows[mask])
        known = (labels["direction"] >= 0) & ~labels["direction_tied"]
        means = maps.mean((2, 3)).cpu().double()[known]
        chosen = torch.nn.functional.one_hot(labels["direction"][known].long(), len(DIRECTIONS)).double()
        self._sums += means.sum(0)
        self._squares += means.square().sum(0)
        self._direction_sums += chosen.T @ means
        self._direction_frames += chosen.sum(0)

    @property
    def mean_active(self) -> Float[np.ndarray, " U"]:
        """Mean activation where above 0; NaN where never."""
        with np.errstate(invalid="ignore"):
            return (self._active_sums / self.values.active()).numpy()

    @property
    def frequency(self) -> Float[np.ndarray, " U"]:
        """Share of positions where each unit is above 0."""
        return (self.values.active() / self.values.counts.sum(1)).numpy()

    def auc(self) -> Float[np.ndarray, "K U"]:
        """How well the activation at a position tells whether an entity is there; NaN without labels."""
        return np.stack([binned_auc(counts.counts, self.values.counts) for counts in self._at_entity])

    def direction_means(self) -> Float[np.ndarray, "4 U"]:
        """Mean over frames, by the first move of the shortest solution, of the unit's mean over the map."""
        with np.errstate(invalid="ignore"):
            return (self._direction_sums / self._direction_frames[:, None]).numpy()

    def direction_selectivity(self) -> Float[np.ndarray, " U"]:
        """Share of the variance over frames of the unit's mean over the map that the direction explains, in 0 to 1.

        This is the correlation ratio, eta squared. Frames with several shortest first moves are left out. NaN where
        there are no labels, or the unit does not vary.
        """
        frames = self._direction_frames.sum()
        known = self._direction_frames > 0
        between = (self._direction_sums[known].square() / self._direction_frames[known, None]).sum(0)
        correction = self._sums.square() / frames
        varies = self._squares - correction > _CONSTANT * self._squares
        ratio = (between - correction) / (self._squares - correction)
        return torch.where(varies, ratio, torch.nan).numpy()

    def co_activity(self) -> Float[np.ndarray, "U U"]:
        """Correlation (phi) between being above 0 at the same position, or of signed units between their activations
        there (Pearson's r); NaN for units that always or never are above 0, or do not vary.
        """
        positions = self.values.counts.sum(1)[0].double()
        share = self._of_each / positions
        variance = share * (1 - share)
        if self._signed:
            squares = self.together.diagonal() / positions
            variance = squares - share.square()
            variance[variance < _CONSTANT * squares] = 0
        spread = variance.sqrt()
        phi = (self.together / positions - torch.outer(share, share)) / torch.outer(spread, spread)
        return torch.where(torch.outer(spread, spread) > 0, phi, torch.nan).numpy()


def entity_positions(
    cells: Int[Tensor, "B K 2"], world_dim: Int[Tensor, " B"], height: int, width: int
) -> Bool[Tensor, "K B H W"]:
    """Positions of a map, laid over a frame that shows the whole world, that belong to each entity's cell.

    These are the positions whose centre lies in the cell, and the one in which the cell's centre lies: on a map with
    fewer positions than cells some cell holds no position's centre. Cells are (x, y) with y upwards.
    """
    side = world_dim.double()[:, None]
    there = (cells >= 0).all(2)
    masks = []
    for low, size in ((side - 1 - cells[..., 1], height), (cells[..., 0].double(), width)):
        middles = (torch.arange(size) + 0.5) * side[..., None] / size
        inside = (middles >= low[..., None]) & (middles < low[..., None] + 1)
        own = ((low + 0.5) * size / side).floor().long().clamp(0, size - 1)
        masks.append(inside | torch.nn.functional.one_hot(own, size).bool())
    down, across = masks
    both: Tensor = down[..., :, None] & across[..., None, :] & there[..., None, None]
    return both.transpose(0, 1)
