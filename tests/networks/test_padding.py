import numpy as np
import pytest

from networks.padding import padded_batch


@pytest.mark.parametrize(("count", "size"), [(1, 8), (8, 8), (9, 16), (33, 64), (64, 64)])
def test_sizes_are_powers_of_two_and_frames_stay_in_front(count: int, size: int) -> None:
    frames = np.random.default_rng(0).integers(256, size=(count, 64, 64, 3), dtype=np.uint8)
    batch = padded_batch(frames).numpy()
    assert len(batch) == size
    assert np.array_equal(batch[:count], frames)
    assert (batch[count:] == frames[-1]).all()
