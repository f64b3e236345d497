"""Frames that drive a unit most, out of a stream of any length: exact, in constant memory."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor
from torch.nn.functional import normalize

_KEPT = ("scores", "levels", "places", "heats", "frames", "around", "maximum", "sums", "fired")
_POOL = 4  # times k frames are kept of which k that differ are chosen


class Example(NamedTuple):
    """One frame of a unit's examples.

    Attributes:
        score: the unit's highest activation in the frame.
        level: level seed; -1 where none were given.
        place: the frame's place in the stream, from 0.
        peak: (y, x) of the highest activation on the tap's map.
        heat: the unit's activation at every position.
        frame: the frame.
    """

    score: float
    level: int
    place: int
    peak: tuple[int, int]
    heat: Float[Tensor, "H W"]
    frame: UInt8[Tensor, "64 64 3"]


class DatasetExamples:
    """Keeps each unit's k best frames of all that stream by, with statistics of every unit.

    A frame's score is the unit's highest activation in it. Of equal scores the frame seen first wins, so the result
    is that of a stable sort of the whole stream, however it is cut into batches.

    With `diversity` the k are chosen one by one out of the 4 k best: the one whose score, less the weight x the unit's
    highest activation x the highest cosine with any that was chosen before, is highest. The cosine is that between the
    activations of all units where this unit peaks: how alike the network finds the two places.

    Args:
        per_unit: k.
        one_per_level: keep at most the best frame of each level, so that k examples are k different places.
        targets: the best frames are then those whose highest activation is nearest to a unit's own target, such as a
            quantile. A target that is no number is not near to any frame: that unit has no examples.
        diversity: weight of the cosine; 0 keeps the k best.

    Raises:
        ValueError: k below 1, or a weight below 0.
    """

    def __init__(
        self,
        per_unit: int,
        one_per_level: bool = True,
        targets: Float[Tensor, " F"] | None = None,
        diversity: float = 0.0,
    ) -> None:
        if per_unit < 1:
            raise ValueError(f"per_unit is {per_unit}: keep at least 1 example a unit")
        if diversity < 0:
            raise ValueError(f"diversity is {diversity}: it must not be negative")
        self.per_unit = per_unit
        self.diversity = diversity
        self._pool = per_unit * _POOL if diversity > 0 else per_unit
        self.one_per_level = one_per_level
        self._targets = targets
        self.num_frames = 0
        self._positions = 0
        self._scores = torch.zeros(0)

    def _allocate(self, frames: Tensor, maps_BFHW: Tensor) -> None:
        units, shape = maps_BFHW.shape[1], (maps_BFHW.shape[1], self._pool)
        if self._targets is not None and self._targets.shape != (units,):
            raise ValueError(f"{len(self._targets)} targets were given for {units} units: give one a unit")
        self._maximum = torch.full((units,), -torch.inf)
        self._scores = torch.full(shape, -torch.inf)
        self._levels = torch.full(shape, -1)
        self._places = torch.full(shape, -1)
        self._heats = torch.zeros(*shape, *maps_BFHW.shape[2:])
        self._frames = torch.zeros(*shape, *frames.shape[1:], dtype=torch.uint8)
        self._around = torch.zeros(*shape, units if self.diversity > 0 else 0)  # all units' activations at the peak
        self._sums = torch.zeros(units, dtype=torch.float64)
        self._fired: Int64[Tensor, " F"] = torch.zeros(units, dtype=torch.int64)

    def update(
        self,
        frames: UInt8[Tensor, "B 64 64 3"],
        activations: Float[Tensor, "B F H W"] | Float[Tensor, "B F"],
        levels: Int[Tensor, " B"] | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            frames: what the network saw.
            activations: what each unit made of it; a flat tap counts as one position.
            levels: level seed of each frame.

        Raises:
            ValueError: `one_per_level` without levels, batches that do not belong together, or an activation that is
                no number.
        """
        maps = activations[:, :, None, None] if activations.ndim == 2 else activations
        if levels is None and self.one_per_level:
            raise ValueError("one example a level was asked for: give the frames' levels, or one_per_level=False")
        if len(frames) != len(maps) or (levels is not None and len(levels) != len(frames)):
            raise ValueError(f"{len(frames)} frames came with {len(maps)} activations and levels of another number")
        if self.num_frames == 0:
            self._allocate(frames, maps)
        if maps.shape[1:] != (len(self._scores), *self._heats.shape[2:]):
            raise ValueError(f"activations are now {tuple(maps.shape[1:])} a frame, before they were of another shape")
        scores_FB = maps.amax((2, 3)).float().cpu().T
        if not scores_FB.isfinite().all():
            raise ValueError("an activation is NaN or infinite: the network or the autoencoder has diverged")
        self._sums += maps.sum((0, 2, 3), dtype=torch.float32).cpu()
        self._fired += (maps > 0).float().sum((0, 2, 3)).long().cpu()  # several times faster than summing booleans
        self._positions += len(maps) * maps.shape[2] * maps.shape[3]
        self._maximum = torch.maximum(self._maximum, scores_FB.amax(1))
        if self._targets is not None:
            scores_FB = -(scores_FB - self._targets[:, None]).abs().nan_to_num(torch.inf)
        levels = torch.full((len(frames),), -1) if levels is None else levels.cpu().long()
        self._merge(frames, maps, scores_FB, levels)
        self.num_frames += len(frames)

    def _merge(
        self,
        frames: Tensor,
        maps: Float[Tensor, "B F H W"],
        scores: Float[Tensor, "F B"],
        levels: Int64[Tensor, " B"],
    ) -> None:
        hopeful = (scores > self._scores[:, -1:]).any(1).nonzero()[:, 0]  # later equals lose: strictly above
        kept, kept_levels = self._scores[hopeful], self._levels[hopeful]
        new = scores[hopeful]
        if self.one_per_level:
            new = torch.where(_best_of_level(new, levels), new, -torch.inf)
            same_FkB = kept_levels[:, :, None] == levels
            beaten = (same_FkB & (new[:, None, :] > kept[:, :, None])).any(2)
            late = (same_FkB & (new[:, None, :] <= kept[:, :, None])).any(1)
            kept = torch.where(beaten, -torch.inf, kept)
            new = torch.where(late, -torch.inf, new)
        # all kept frames came before the batch, so a stable sort leaves the earlier of two equals in front
        scores, order = torch.cat([kept, new], 1).sort(dim=1, descending=True, stable=True)
        scores, order = scores[:, : self._pool], order[:, : self._pool]
        old = order.clamp(max=self._pool - 1)
        rows = (order - self._pool).clamp(min=0)
        fresh = order >= self._pool
        self._scores[hopeful] = scores
        self._levels[hopeful] = torch.where(fresh, levels[rows], kept_levels.gather(1, old))
        self._places[hopeful] = torch.where(fresh, self.num_frames + rows, self._places[hopeful].gather(1, old))
        for unit, old_k, row_k, fresh_k in zip(hopeful.tolist(), old, rows, fresh, strict=True):
            heats, stored = self._heats[unit, old_k], self._frames[unit, old_k]
            heats[fresh_k] = maps[row_k[fresh_k], unit].float().cpu()
            stored[fresh_k] = frames[row_k[fresh_k]].cpu()
            self._heats[unit], self._frames[unit] = heats, stored
            if self.diversity > 0:
                around, new = self._around[unit, old_k], maps[row_k[fresh_k]].flatten(2)
                peaks = new[:, unit].argmax(1)
                around[fresh_k] = new[torch.arange(len(new)), :, peaks].float().cpu()
                self._around[unit] = around

    def of_unit(self, unit: int) -> list[Example]:
        """A unit's examples, best first; fewer than k where fewer frames or levels streamed by."""
        examples = []
        for rank in self._chosen(unit):
            heat = self._heats[unit, rank]
            score = float(heat.max())
            y, x = divmod(int(heat.argmax()), heat.shape[1])
            level, place = int(self._levels[unit, rank]), int(self._places[unit, rank])
            examples.append(Example(score, level, place, (y, x), heat, self._frames[unit, rank]))
        return examples

    def state(self) -> dict[str, Tensor]:
        """All that was kept, to go on from with `load_state`; before the first batch there is nothing."""
        if self.num_frames == 0:
            raise ValueError("no frame streamed by yet: there is nothing to keep")
        return {
            **{name: getattr(self, f"_{name}") for name in _KEPT},
            "counts": torch.tensor([self.num_frames, self._positions]),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what another one of the same arguments kept.

        Raises:
            ValueError: it keeps another number of examples.
        """
        if state["scores"].shape[1] != self._pool:
            raise ValueError(f"{state['scores'].shape[1]} examples a unit were kept, not {self._pool}: start anew")
        for name in _KEPT:
            setattr(self, f"_{name}", state[name].clone())
        self.num_frames, self._positions = state["counts"].tolist()

    def _chosen(self, unit: int) -> list[int]:
        """Places in the unit's pool, in the order in which they are chosen."""
        scores = self._scores[unit, self._scores[unit] > -torch.inf]
        if self.diversity == 0:
            return list(range(len(scores)))
        around = normalize(self._around[unit, : len(scores)], dim=1)
        likeness = around @ around.T * self.diversity * self._maximum[unit].clamp(min=0)
        chosen: list[int] = []
        worth = scores.clone()
        for _ in range(min(self.per_unit, len(scores))):
            best = int(worth.argmax())  # the first of equals
            chosen.append(best)
            worth = scores - likeness[chosen].amax(0)
            worth[chosen] = -torch.inf
        return chosen

    @property
    def mean(self) -> Float[Tensor, " F"]:
        """Mean activation of each unit over all frames and positions."""
        return (self._sums / max(self._positions, 1)).float()

    @property
    def frequency(self) -> Float[Tensor, " F"]:
        """Share of all positions at which each unit is above zero."""
        return (self._fired.double() / max(self._positions, 1)).float()

    @property
    def maximum(self) -> Float[Tensor, " F"]:
        """Highest activation of each unit at any position of any frame."""
        return self._maximum.clone()


def _best_of_level(scores: Float[Tensor, "F B"], levels: Int64[Tensor, " B"]) -> Tensor:
    """Which rows are, for each unit, the first among the best of their level within the batch."""
    _, group_B = levels.unique(return_inverse=True)
    group_FB = group_B.expand_as(scores)
    groups, rows = int(group_B.max()) + 1, scores.shape[1]
    best = torch.full((len(scores), groups), -torch.inf).scatter_reduce(1, group_FB, scores, "amax")
    row_FB = torch.arange(rows).expand_as(scores)
    candidates = torch.where(scores == best.gather(1, group_FB), row_FB, rows)
    first = torch.full((len(scores), groups), rows).scatter_reduce(1, group_FB, candidates, "amin")
    return first.gather(1, group_FB) == row_FB
