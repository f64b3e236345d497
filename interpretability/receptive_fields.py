"""Which pixels a position of a tap can see."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from networks import TappedAgent

_LARGEST_CANVAS = 1024


@dataclass(frozen=True)
class ReceptiveField:
    """The box of pixels that position (y, x) of a tap sees: `size` pixels from `offset + stride * (y, x)` on.

    At the border the box reaches over the frame's edge, into the network's padding.

    Attributes:
        size: height and width in pixels.
        stride: pixels between the boxes of neighbouring positions.
        offset: first row and column of position (0, 0)'s box; negative in the padding.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    offset: tuple[int, int]

    def box(self, y: int, x: int) -> tuple[int, int, int, int]:
        """Top, left, bottom, right of a position's box; bottom and right are the first pixels outside it."""
        top = self.offset[0] + self.stride[0] * y
        left = self.offset[1] + self.stride[1] * x
        return top, left, top + self.size[0], left + self.size[1]

    def widened(self, kernel_size: int) -> "ReceptiveField":
        """What a convolution over the tap sees, whose odd kernel is centred on each position."""
        reach = [(kernel_size - 1) * stride for stride in self.stride]
        return ReceptiveField(
            (self.size[0] + reach[0], self.size[1] + reach[1]),
            self.stride,
            (self.offset[0] - reach[0] // 2, self.offset[1] - reach[1] // 2),
        )

    def cut(
        self, frame: UInt8[Tensor, "H W 3"], y: int, x: int, fill: tuple[int, int, int] = (128, 128, 128)
    ) -> UInt8[Tensor, "h w 3"]:
        """The patch of a frame that position (y, x) sees, always `size` large: what lies outside is `fill`."""
        top, left, bottom, right = self.box(y, x)
        patch = torch.tensor(fill, dtype=frame.dtype).expand(*self.size, 3).clone()
        height, width = frame.shape[:2]
        rows = slice(max(top, 0), min(bottom, height))
        columns = slice(max(left, 0), min(right, width))
        inside = frame[rows, columns]
        patch[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
        return patch


def receptive_field(agent: TappedAgent, tap: str) -> ReceptiveField | None:
    """The receptive field of a tap, from the kernels, strides and padding of the layers before it.

    Weights do not matter: a NaN in one row of pixels passes through any linear layer, pool and ReLU, so the rows of
    the tap that turn NaN are those whose box contains it, whatever the topology before. The network's convolutions
    run on a canvas large enough for a whole box.

    Returns:
        None where a position sees the whole frame: flat taps, and taps whose box outgrows every canvas.

    Raises:
        ValueError: an unknown tap.
    """
    agent.check_taps([tap])
    if len(agent.taps[tap]) != 3:
        return None
    # float64 on the CPU: no library there mixes neighbouring outputs as Winograd and FFT convolutions do
    probe = copy.deepcopy(agent).cpu().double().requires_grad_(False)
    rows = _Axis(probe, tap, transpose=False).measure()
    columns = _Axis(probe, tap, transpose=True).measure()
    if rows is None or columns is None:
        return None
    return ReceptiveField((rows[0], columns[0]), (rows[1], columns[1]), (rows[2], columns[2]))


class _Axis:
    """The extent of a tap's boxes along one axis."""

    def __init__(self, probe: TappedAgent, tap: str, transpose: bool) -> None:
        self._probe = probe
        self._tap = tap
        self._transpose = transpose
        self._frames: Float[Tensor, "1 S 64 3"] = torch.zeros(0)

    def measure(self) -> tuple[int, int, int] | None:
        """Size, stride and offset, or None."""
        canvas = 128
        while canvas <= _LARGEST_CANVAS:
            self._frames = torch.zeros(1, canvas, 64, 3, dtype=torch.float64)
            middle = len(self._reached(slice(0, 0))) // 2
            first, last = self._first(middle), self._last(middle)
            following = self._first(middle + 1)
            # a box that touches the canvas's edge may be longer than what is seen of it
            if first > 0 and last < canvas - 1:
                stride = following - first
                return last - first + 1, stride, first - stride * middle
            canvas *= 2
        return None

    def _reached(self, rows: slice) -> Shaped[Tensor, " H"]:
        """Which rows of the tap see any of the given rows of pixels."""
        frames = self._frames.clone()
        frames[:, rows] = torch.nan
        if self._transpose:
            frames = frames.transpose(1, 2)
        with torch.no_grad():
            acts = self._probe.forward(frames, record=(self._tap,), outputs=False).activations[self._tap]
        return acts.isnan().any(1).any(1 if self._transpose else 2)[0]

    def _first(self, position: int) -> int:
        """The first row of pixels that a position sees, by bisection: the box is an interval."""
        low, high = 0, self._frames.shape[1] - 1
        while low < high:
            middle = (low + high) // 2
            if self._reached(slice(0, middle + 1))[position]:
                high = middle
            else:
                low = middle + 1
        return low

    def _last(self, position: int) -> int:
        low, high = 0, self._frames.shape[1] - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._reached(slice(middle, None))[position]:
                low = middle
            else:
                high = middle - 1
        return low
