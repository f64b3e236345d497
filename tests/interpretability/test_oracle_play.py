import numpy as np
import pytest

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import label_states
from interpretability.episodes import first_states
from interpretability.oracle_play import play_oracle, play_oracle_from

EASY = EnvironmentSettings()


def steps_alone(level: int) -> int:
    """The oracle alone in an environment of procgen's own that knows this level only."""
    environment = VectorEnvironment(EnvironmentSettings(start_level=level, num_levels=1), 1)
    for step in range(1, 1_001):
        environment.observe()
        environment.act(label_states(environment.get_states()).oracle_action)
        reward, _, first = environment.observe()
        if first[0]:
            assert reward[0] == 10
            return step
    raise AssertionError


def test_agrees_with_playing_each_level_alone():
    levels = [50, 7, 12, 3, 40]
    played = play_oracle(levels, settings=EASY, num_environments=2)
    assert played.levels.tolist() == levels
    assert played.lengths.tolist() == [steps_alone(level) for level in levels]
    assert played.solved.all()
    assert not played.cut.any()
    assert np.array_equal(played.returns, np.full(5, 10))


def test_goes_on_from_states_in_the_middle_of_episodes():
    """Cut after some steps and gone on with, an episode takes as many steps as in one go."""
    levels, before = [50, 7, 12], 10
    environment = VectorEnvironment(EASY, 3)
    environment.set_states(first_states(levels, EASY))
    for _ in range(before):
        environment.observe()
        environment.act(label_states(environment.get_states()).oracle_action)
    states = environment.get_states()
    environment.close()
    played = play_oracle_from([*states, states[0]], settings=EASY, num_environments=2)
    assert played.levels.tolist() == [*levels, levels[0]]
    assert (played.lengths + before).tolist() == [steps_alone(level) for level in (*levels, levels[0])]
    assert played.solved.all()


def test_is_cut_where_asked():
    played = play_oracle(range(3), settings=EASY, max_steps=2)
    assert played.lengths.tolist() == [2, 2, 2]
    assert played.cut.all()
    assert not played.solved.any()


def test_other_games_have_no_oracle():
    with pytest.raises(ValueError, match="not one of heist"):
        play_oracle([0], settings=EnvironmentSettings("maze"))
