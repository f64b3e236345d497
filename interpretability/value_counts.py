"""How often units take which value, counted out of a stream in constant memory: histograms, quantiles and AUCs."""

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

_SHIFT = 16  # of a float32's bits: 7 of the mantissa are kept, as bfloat16 does
_LOWEST = 127 - 20  # exponent of 2^-20: what is smaller counts as this
_OCTAVES = 40
_PER_OCTAVE = 2 ** (23 - _SHIFT)
NUM_BINS = 1 + _OCTAVES * _PER_OCTAVE
"""One for values that are not above 0, and 128 an octave from 2^-20 to 2^20."""


def value_bins(values: Float[Tensor, " *shape"]) -> Int64[Tensor, " *shape"]:
    """The bin of each value: 0 if it is not above 0, then 128 an octave, so that bins are less than 1 % wide.

    The upper bits of a positive float32 count on with its value. What bfloat16 can express is told apart exactly.
    """
    bits = values.float().contiguous().view(torch.int32).long() >> _SHIFT
    above = (bits - _LOWEST * _PER_OCTAVE).clamp(0, NUM_BINS - 2) + 1
    return above * (values > 0)


def bin_edges() -> Float[np.ndarray, " NUM_BINS"]:
    """Lower edges of bins 1, 2, ..., and the upper edge of the last."""
    places = np.arange(NUM_BINS)
    octaves, parts = np.divmod(places, _PER_OCTAVE)
    return np.ldexp(1 + parts / _PER_OCTAVE, octaves + _LOWEST - 127)


class ValueCounts:
    """Counts in bins of each of U units.

    Args:
        units: U.
    """

    def __init__(self, units: int) -> None:
        self.counts: Int64[Tensor, "U NUM_BINS"] = torch.zeros(units, NUM_BINS, dtype=torch.int64)

    def update(self, values_NU: Float[Tensor, "N U"]) -> None:
        """Count a batch."""
        units = self.counts.shape[0]
        # most activations are 0: those are counted by subtraction, which spares sorting them into bins
        rows, columns = (values_NU > 0).nonzero(as_tuple=True)
        bins = value_bins(values_NU[rows, columns]) + columns * NUM_BINS
        found = torch.bincount(bins, minlength=units * NUM_BINS).view(units, NUM_BINS).cpu()
        found[:, 0] = len(values_NU) - found.sum(1)
        self.counts += found

    def active(self) -> Int64[Tensor, " U"]:
        """How many values were above 0."""
        return self.counts[:, 1:].sum(1)

    def quantile(self, share: float) -> Float[Tensor, " U"]:
        """The value below which this share of a unit's values above 0 lie, to a bin's width; NaN where none are."""
        below = self.counts[:, 1:].cumsum(1)
        wanted = (below[:, -1:] * share).ceil().long().clamp(min=1)
        place = torch.searchsorted(below, wanted)[:, 0].clamp(max=NUM_BINS - 2)
        edges = torch.from_numpy(bin_edges())
        middle = (edges[place] + edges[place + 1]) / 2
        return torch.where(below[:, -1] > 0, middle, torch.nan).float()

    def histogram(self, unit: int, high: float, num: int) -> Float[np.ndarray, " num"]:
        """How many of a unit's values above 0 lie in each of `num` equal intervals from 0 to `high`.

        Bins that two intervals share are shared out.
        """
        below = np.concatenate([[0], self.counts[unit, 1:].cumsum(0).numpy()])
        at = np.interp(np.linspace(0, high, num + 1), bin_edges(), below)
        at[0], at[-1] = 0, below[-1]
        return np.diff(at)


def binned_auc(
    present: Shaped[Tensor, "U NUM_BINS"], everything: Shaped[Tensor, "U NUM_BINS"]
) -> Float[np.ndarray, " U"]:
    """Probability that a value counted in `present` exceeds one of the rest of `everything`, equal bins counting half.

    This is the area under the ROC curve of the value as a detector (Mann and Whitney 1947). NaN where one of the two
    groups is empty.
    """
    positive = present.double().numpy()
    negative = everything.double().numpy() - positive
    below = negative.cumsum(1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))
