import numpy as np
import pytest

from environments import EnvironmentSettings, State
from environments.heist import (
    AXES,
    DIRECTION_STEPS,
    QUADRANTS,
    corner_scenes,
    label_states,
    occupied_cells,
    read_layout,
)
from interpretability.episodes import first_states
from interpretability.oracle_play import play_oracle_from

SETTINGS = EnvironmentSettings("heist", "easy")
PLAYER, REACH = (4, 3), (3, 2)


@pytest.fixture(scope="module")
def state() -> State:
    return State.from_bytes(first_states([3], SETTINGS)[0])


@pytest.mark.parametrize("blocked", [None, 2, 3, 4])
def test_first_step_key_and_gem_vary_by_themselves(state: State, blocked: int | None) -> None:
    scenes = corner_scenes(state, "green_key", PLAYER, REACH, blocked)
    labels = label_states([scene.to_bytes() for scene in scenes])
    assert len(scenes) == 16
    assert set(labels.path_length.tolist()) == {5}
    assert not labels.direction_tied.any()
    row = 0
    for quadrant in QUADRANTS:
        for axis in range(len(AXES)):
            for gem_axis in range(len(AXES)):
                where = {names[0]: np.subtract(cell, PLAYER) for cell, names in occupied_cells(scenes[row]).items()}
                assert (where["player"] == 0).all()
                assert where["green_key"].tolist() == [quadrant[0] * REACH[0], quadrant[1] * REACH[1]]
                away = np.zeros(2, dtype=int)
                away[gem_axis] = -quadrant[gem_axis]
                assert (where["gem"] == 2 * away).all()
                assert (where["green_lock"] == away).all()
                step = np.zeros(2, dtype=int)
                step[axis] = quadrant[axis]
                assert DIRECTION_STEPS[labels.direction[row]] == tuple(step)
                row += 1


def test_both_ways_look_alike_at_the_player(state: State) -> None:
    """With the other way opened, two scenes of the same key and gem differ in two cells, none of them next to it."""
    scenes = corner_scenes(state, "blue_key", PLAYER, REACH, blocked=3)
    for one, other in zip(scenes[0::4] + scenes[1::4], scenes[2::4] + scenes[3::4], strict=True):
        differs = np.argwhere(one.grid != other.grid)[:, ::-1]
        assert len(differs) == 2
        assert (np.abs(differs - PLAYER).sum(1) == 3).all()
        assert read_layout(one).maze.keys == read_layout(other).maze.keys


def test_the_oracle_finishes_them(state: State) -> None:
    scenes = [*corner_scenes(state, "red_key", PLAYER, REACH), *corner_scenes(state, "red_key", PLAYER, REACH, 2)]
    assert play_oracle_from([scene.to_bytes() for scene in scenes], settings=SETTINGS).solved.all()
