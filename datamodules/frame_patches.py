"""Frames of an episode in about 200 bytes each: its first frame, and of every frame the pixels that differ from that.

Every frame refers to the first one alone, so that a window in the middle needs nothing of what lies before it.
"""

import zlib
from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from environments import FRAME_SHAPE

CHUNK: Final = 32
"""Frames whose patches are compressed together: a window inflates no more of a long episode than what it needs."""
_COLUMNS = ("first", "first_end", "patches", "patches_end", "changed")
_PIXELS = FRAME_SHAPE[0] * FRAME_SHAPE[1]
_PIXEL = np.dtype("V3")  # one pixel as one item: numpy gathers and scatters these at a third of the cost of rows of 3
_PIXEL_BYTES = 2 + _PIXEL.itemsize


class FramePacker:
    """Takes an episode's frames one by one and keeps them compressed.

    Attributes:
        first: the compressed first frame.
        chunks: compressed patches, those of `CHUNK` frames in each: places of the changed pixels, then their colours.
        changed: of each frame, how many pixels differ from the first one's.
    """

    def __init__(self, first: UInt8[np.ndarray, "64 64 3"]) -> None:
        self._first = first.reshape(_PIXELS, 3).copy()
        self.first = zlib.compress(self._first.tobytes())
        self.chunks: list[bytes] = []
        self.changed: list[int] = []
        self._places: list[bytes] = []
        self._colours: list[bytes] = []

    def add(self, frame: UInt8[np.ndarray, "64 64 3"]) -> None:
        """Keep the next frame; the first one is to be added, too."""
        pixels = frame.reshape(_PIXELS, 3)
        places = np.flatnonzero(_differ(pixels, self._first)).astype(np.uint16)
        self._places.append(places.tobytes())
        self._colours.append(pixels[places].tobytes())
        self.changed.append(len(places))
        if len(self._places) == CHUNK:
            self.close()

    def close(self) -> None:
        """Compress what is left of an unfinished chunk."""
        if self._places:
            self.chunks.append(zlib.compress(b"".join(self._places + self._colours)))
            self._places, self._colours = [], []


class PackedFrames:
    """The frames of many episodes, as columns of a shard.

    Args:
        steps: frames of each episode.
        first: compressed first frames, one after the other, and where each of them ends.
        patches: compressed chunks, likewise.
        changed: changed pixels of each frame of all episodes.
    """

    def __init__(
        self,
        steps: Int[np.ndarray, " E"],
        first: UInt8[np.ndarray, " bytes"],
        first_end: Int[np.ndarray, " E"],
        patches: UInt8[np.ndarray, " bytes"],
        patches_end: Int[np.ndarray, " chunks"],
        changed: Int[np.ndarray, " R"],
    ) -> None:
        self._first, self._first_end = first, np.concatenate([[0], first_end])
        self._patches, self._patches_end = patches, np.concatenate([[0], patches_end])
        self._changed = changed
        self._row = np.concatenate([[0], np.cumsum(steps)])
        self._chunk = np.concatenate([[0], np.cumsum(-(-steps // CHUNK))])

    @classmethod
    def from_rows(cls, rows: Mapping[str, Tensor]) -> "PackedFrames":
        """The frames of a recorded shard (`datamodules.trajectory_recorder.TrajectoryRecorder`)."""
        names = ("episodes/steps", *(f"frames/{name}" for name in _COLUMNS))
        steps, *columns = (rows[name].numpy() for name in names)
        return cls(steps.astype(np.int64), *columns)

    def read(self, episode: int, start: int, out: UInt8[np.ndarray, "T 64 64 3"]) -> None:
        """Write the frames of an episode from step `start` on into `out`, as many as fit there; they must exist."""
        count = len(out)
        blob = self._first[self._first_end[episode] : self._first_end[episode + 1]]
        out[:] = np.frombuffer(zlib.decompress(blob.data), np.uint8).reshape(FRAME_SHAPE)
        pixels = out.reshape(-1).view(_PIXEL)
        row, chunk = int(self._row[episode]), int(self._chunk[episode])
        for index in range(start // CHUNK, (start + count - 1) // CHUNK + 1):
            begin = index * CHUNK
            changed = self._changed[row + begin : min(row + begin + CHUNK, int(self._row[episode + 1]))]
            lie, end = self._patches_end[chunk + index : chunk + index + 2]
            patch = zlib.decompress(self._patches[lie:end].data)
            size = len(patch) // _PIXEL_BYTES
            places = np.frombuffer(patch, np.uint16, size)
            colours = np.frombuffer(patch, _PIXEL, size, offset=2 * size)
            low, high = max(start - begin, 0), min(start + count - begin, len(changed))
            ends = np.cumsum(changed, dtype=np.int64)
            wanted = slice(int(ends[low - 1]) if low else 0, int(ends[high - 1]))
            rows = np.repeat(np.arange(begin + low - start, begin + high - start) * _PIXELS, changed[low:high])
            pixels[rows + places[wanted]] = colours[wanted]


def _differ(frame: UInt8[np.ndarray, "P 3"], other: UInt8[np.ndarray, "P 3"]) -> Bool[np.ndarray, " P"]:
    differ = frame != other
    return differ[:, 0] | differ[:, 1] | differ[:, 2]  # several times faster than any(-1)
