"""What each patch of the patching study moves, pair by pair, and the shares that come of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from interpretability.attribution import ALONG_THE_WAY, AT_BASE, patch_estimates
from interpretability.patching import (
    action_difference,
    aligned,
    block_masks,
    channel_masks,
    patched_logits,
    record_taps,
)
from interpretability.statistics import Interval, bootstrap_of_sums
from networks import Precision, TappedAgent
from studies.patching_mazes import Pair, position_sets

REFERENCES: Final = ("frame", "preferred", "other", "player")
"""What blocks of positions are counted from: the frame's corner, or a cell in the frame that is run."""
PAIRS: Final = 6
"""Mazes so far apart have the same two entities."""
ESTIMATES: Final = {"gradient": AT_BASE, "path": ALONG_THE_WAY}
"""Where gradients are taken for estimates of what single blocks and channels move."""
_SHOWN: Final = 0.5  # of the frames must have a block for it to be counted


@dataclass(frozen=True)
class Moved:
    """How far patches of one tap move N pairs of frames towards what the source frame says, and how far that is.

    Attributes:
        whole: difference between the two frames of each pair, for each that is run, in nats; never below 0.
        sets: what each set of positions moves of it.
        blocks: what each block of positions moves; of size 0 at a flat tap.
        units: what each channel moves; none where it was not asked for.
        estimates: what blocks and channels were estimated to move, [N 2 G*G+C], by where gradients were taken.
        controls: what sets move in the first frame, from other sources; NaN where there is none.
        share: of the positions, how many are in each set on average.
    """

    whole: Float[np.ndarray, "N 2"]
    sets: Mapping[str, Float[np.ndarray, "N 2"]]
    blocks: Float[np.ndarray, "N 2 G G"]
    units: Float[np.ndarray, "N 2 C"]
    estimates: Mapping[str, Float[np.ndarray, "N 2 G2C"]]
    controls: Mapping[str, Mapping[str, Float[np.ndarray, " N"]]]
    share: Mapping[str, float]

    def recovered(self, moved: Float[np.ndarray, "N D"], first: int = 0) -> Interval:
        """Share of the whole difference, with bounds over pairs: of D frames of each pair, from number `first` on.

        NaN are left out.
        """
        whole = np.where(np.isfinite(moved), self.whole[:, first : first + moved.shape[1]], np.nan)
        sums = np.stack([np.nansum(moved, 1), np.nansum(whole, 1)], 1)
        known = np.isfinite(moved).any(1)
        return bootstrap_of_sums(sums[known], ratio) if known.any() else Interval(np.nan, np.nan, np.nan)

    def arms(self, name: str) -> dict[str, Interval]:
        """What a set recovers: in all, from either frame into the other, and from the controls' sources."""
        moved = self.sets[name]
        found = {"": self.recovered(moved), "_forth": self.recovered(moved[:, :1])}
        found["_back"] = self.recovered(moved[:, 1:], 1)
        return found | {f"_{key}": self.recovered(each[name][:, None]) for key, each in self.controls.items()}

    def estimated(self, how: str) -> tuple[Float[np.ndarray, "N 2 G2"], Float[np.ndarray, "N 2 C"]]:
        """What blocks and channels were estimated to move."""
        count = self.blocks[0, 0].size
        return self.estimates[how][:, :, :count], self.estimates[how][:, :, count:]

    def around(self, pairs: Sequence[Pair], reference: str) -> tuple[np.ndarray, np.ndarray]:
        """(moved, whole) of each block, as it lies from a reference, [N 2 rows columns]; NaN where there is none."""
        moved, whole = self.blocks, np.broadcast_to(self.whole[..., None, None], self.blocks.shape)
        if reference == "frame":
            return moved, whole
        height, width = moved.shape[2:]
        centres = np.array([
            [
                (int((pair.side - y - 0.5) / pair.side * height), int((x + 0.5) / pair.side * width))
                for x, y in (pair.places(exchanged)[reference] for exchanged in range(2))
            ]
            for pair in pairs
        ])  # fmt: skip
        moved, whole = (aligned(each.reshape(-1, height, width), centres.reshape(-1, 2)) for each in (moved, whole))
        shape = (len(pairs), 2, *moved.shape[1:])
        return moved.reshape(shape), whole.reshape(shape)

    def map(self, pairs: Sequence[Pair], reference: str) -> Float[np.ndarray, "rows columns"]:
        """What each block recovers; NaN where less than half of the frames have it."""
        moved, whole = self.around(pairs, reference)
        often = np.isfinite(moved).mean((0, 1)) >= _SHOWN
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(often, np.nansum(moved, (0, 1)) / np.nansum(whole, (0, 1)), np.nan)


def ratio(sums: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, " R"]:
    """For `bootstrap_of_sums`."""
    return sums[:, 0] / sums[:, 1]


def agreement(one: Float[np.ndarray, "N D M"], other: Float[np.ndarray, "N D M"]) -> Interval:
    """Pearson's correlation over all single patches, with bounds over pairs."""
    terms = [np.ones_like(one), one, other, one * one, other * other, one * other]
    return bootstrap_of_sums(np.stack([each.sum((1, 2)) for each in terms], 1), _pearson)


def _pearson(sums: Float[np.ndarray, "R 6"]) -> Float[np.ndarray, " R"]:
    count, x, y, xx, yy, xy = sums.T
    return (count * xy - x * y) / np.sqrt((count * xx - x * x) * (count * yy - y * y))


def measure(
    agent: TappedAgent, pairs: Sequence[Pair], taps: Sequence[str], *, units: bool, controls: bool,
    precision: Precision, progress: str,
) -> dict[str, Moved]:  # fmt: skip
    """What every patch moves, at each tap.

    Args:
        agent: whose taps.
        pairs: six kinds in turn.
        taps: to patch.
        units: patch single channels as well.
        controls: patch sets from unrelated mazes and after irrelevant changes as well.
        precision: of the passes.
        progress: title of the bar.
    """
    found: dict[str, list[_OfPair]] = {tap: [] for tap in taps}
    for number, pair in enumerate(tqdm(pairs, desc=progress, unit="maze", leave=False)):
        unrelated = pairs[(number + PAIRS) % len(pairs)].frames[1]
        acts = record_taps(agent, torch.cat([pair.frames, unrelated[None]]), list(taps), precision)
        for tap in taps:
            found[tap].append(_patch(agent, tap, pair, acts[tap], units, controls, precision))
    return {tap: _joined(each) for tap, each in found.items()}


@dataclass(frozen=True)
class _OfPair:
    whole: Float[np.ndarray, " 2"]
    names: list[str]
    sets: Float[np.ndarray, "2 S"]
    blocks: Float[np.ndarray, "2 G2"]
    units: Float[np.ndarray, "2 C"]
    estimates: dict[str, Float[np.ndarray, "2 G2C"]]
    controls: dict[str, Float[np.ndarray, " S"]]
    share: Float[np.ndarray, " S"]
    grid: tuple[int, int]


def _patch(
    agent: TappedAgent, tap: str, pair: Pair, acts: Float[Tensor, "4 C *HW"], units: bool, controls: bool,
    precision: Precision,
) -> _OfPair:  # fmt: skip
    shape = agent.taps[tap]
    sets = [position_sets(pair, exchanged, shape) for exchanged in range(2)]
    groups = [block_masks(shape)] if len(shape) == 3 else []
    groups += [channel_masks(shape)] if units else []

    def estimates(points: Sequence[float]) -> Float[np.ndarray, "2 G2C"]:
        parts = [
            patch_estimates(
                agent, tap, pair.frames[run], acts[run], acts[1 - run], *pair.towards,
                points=points, precision=precision,
            )
            for run in range(2)
        ]  # fmt: skip
        return np.stack([np.concatenate([_within(part, masks) for masks in groups]) for part in parts])

    def differences(run: int, source: Tensor, masks: Sequence[Tensor]) -> Float[np.ndarray, " M"]:
        logits = [patched_logits(agent, tap, pair.frames[run], source, mask, precision) for mask in masks]
        return action_difference(torch.cat(logits), *pair.towards).numpy()

    stacked = [torch.stack(list(each.values())) for each in sets]
    values = np.stack([differences(run, acts[1 - run], [stacked[run], *groups]) for run in range(2)])
    base = values[:, 0]  # the first set is empty
    whole = base[::-1] - base
    moved = (values - base[:, None]) * np.sign(whole)[:, None]
    guessed = {how: estimates(points) * np.sign(whole)[:, None] for how, points in ESTIMATES.items()} if groups else {}
    count = len(sets[0])
    blocks = len(groups[0]) if len(shape) == 3 else 0
    other: dict[str, np.ndarray] = {}
    if controls:
        for name, source in (("irrelevant", acts[2]), ("unrelated", acts[3])):
            changed = (differences(0, source, stacked[:1]) - base[0]) * np.sign(whole[0])
            other[name] = changed if name == "unrelated" or pair.shifted else np.full_like(changed, np.nan)
    return _OfPair(
        np.abs(whole), list(sets[0]), moved[:, :count], moved[:, count : count + blocks], moved[:, count + blocks :],
        guessed, other, np.array([mask.float().mean().item() for mask in sets[0].values()]), _grid(shape, blocks),
    )  # fmt: skip


def _within(parts: Float[Tensor, "C *HW"], masks: Bool[Tensor, "M C_or_1 *HW"]) -> Float[np.ndarray, " M"]:
    """What each mask holds of a sum's parts."""
    if masks.shape[1] == 1:
        parts = parts.sum(0, keepdim=True)
    return (masks * parts).flatten(1).sum(1).numpy()


def _grid(shape: tuple[int, ...], blocks: int) -> tuple[int, int]:
    """Rows and columns of the blocks of a square map."""
    side = round(blocks**0.5)
    assert side * side == blocks, f"maps over frames are square, not {shape}"
    return side, side


def _joined(found: Sequence[_OfPair]) -> Moved:
    names = found[0].names[1:]
    sets, share = np.stack([each.sets for each in found]), np.stack([each.share for each in found]).mean(0)
    controls = {key: np.stack([each.controls[key] for each in found]) for key in found[0].controls}
    return Moved(
        np.stack([each.whole for each in found]),
        {name: sets[:, :, number] for number, name in enumerate(names, 1)},
        np.stack([each.blocks for each in found]).reshape(len(found), 2, *found[0].grid),
        np.stack([each.units for each in found]),
        {how: np.stack([each.estimates[how] for each in found]) for how in found[0].estimates},
        {key: {name: each[:, number] for number, name in enumerate(names, 1)} for key, each in controls.items()},
        {name: float(share[number]) for number, name in enumerate(names, 1)},
    )
