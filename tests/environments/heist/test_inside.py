import numpy as np

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import inside_maze, maze_bounds


def test_mask_covers_the_maze_as_drawn() -> None:
    environment = VectorEnvironment(EnvironmentSettings(), 16)
    environment.play_levels(np.arange(100_000, 100_016))
    _, frames, _ = environment.observe()
    states = [State.from_bytes(state) for state in environment.get_states()]
    environment.close()
    inside = inside_maze(states, 64, 64)
    sides = set()
    for state, frame, mask in zip(states, frames, inside, strict=True):
        left, bottom, right, top = maze_bounds(state)
        sides.add(right - left)
        assert right - left == top - bottom
        assert (right - left) % 2 == 1
        # Outside is wall, drawn with one repeated tile of little contrast; floors and entities are inside.
        outside = frame[~mask].astype(float)
        if len(outside) > 500:
            assert outside.std(0).max() < frame[mask].astype(float).std(0).max() / 2
    assert len(sides) > 1  # mazes of several sizes were seen


def test_coarse_maps_agree_with_fine_ones() -> None:
    environment = VectorEnvironment(EnvironmentSettings(), 8)
    environment.play_levels(np.arange(100_000, 100_008))
    environment.observe()
    states = [State.from_bytes(state) for state in environment.get_states()]
    environment.close()
    fine = inside_maze(states, 64, 64)
    coarse = inside_maze(states, 8, 8)
    assert coarse.shape == (8, 8, 8)
    assert np.array_equal(coarse, inside_maze(states, 128, 128)[:, 8::16, 8::16] & coarse)
    assert abs(coarse.mean() - fine.mean()) < 0.1
