import numpy as np
import pytest

from datamodules.frame_patches import CHUNK, FramePacker, PackedFrames

RNG = np.random.default_rng(0)


def episode(steps: int, change: float) -> np.ndarray:
    """Frames that differ from the first in some share of their pixels, from none to all of them."""
    first = RNG.integers(256, size=(64, 64, 3), dtype=np.uint8)
    frames = np.repeat(first[None], steps, 0)
    for frame in frames[1:]:
        chosen = RNG.random((64, 64)) < change
        frame[chosen] = RNG.integers(256, size=(int(chosen.sum()), 3), dtype=np.uint8)
    return frames


def pack(episodes: list[np.ndarray]) -> PackedFrames:
    packers = []
    for frames in episodes:
        packers.append(FramePacker(frames[0]))
        for frame in frames:
            packers[-1].add(frame)
        packers[-1].close()
    chunks = [chunk for packer in packers for chunk in packer.chunks]
    return PackedFrames(
        np.array([len(frames) for frames in episodes]),
        np.frombuffer(b"".join(packer.first for packer in packers), np.uint8),
        np.cumsum([len(packer.first) for packer in packers]),
        np.frombuffer(b"".join(chunks), np.uint8),
        np.cumsum([len(chunk) for chunk in chunks]),
        np.concatenate([np.array(packer.changed, dtype=np.int16) for packer in packers]),
    )


EPISODES = [episode(1, 0), episode(CHUNK, 0.02), episode(3 * CHUNK + 5, 0.01), episode(40, 1.0), episode(7, 0.0)]
PACKED = pack(EPISODES)


@pytest.mark.parametrize("index", range(len(EPISODES)))
def test_any_part_of_an_episode_is_what_was_packed(index: int) -> None:
    frames = EPISODES[index]
    spans = [(0, len(frames)), (len(frames) - 1, 1)]
    spans += [(start, int(RNG.integers(1, len(frames) - start + 1))) for start in range(0, len(frames), 3)]
    for start, count in spans:
        out = np.full((count, 64, 64, 3), 7, dtype=np.uint8)
        PACKED.read(index, start, out)
        np.testing.assert_array_equal(out, frames[start : start + count])


def test_one_channel_that_changes_is_enough() -> None:
    frames = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    for channel in range(3):
        frames[channel + 1, 5, channel, channel] = 1
    out = np.empty_like(frames)
    pack([frames]).read(0, 0, out)
    np.testing.assert_array_equal(out, frames)
