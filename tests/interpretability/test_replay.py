import numpy as np
import pytest
import torch

from environments import EnvironmentSettings
from environments.state import State
from interpretability.episodes import play_episodes
from interpretability.replay import ActionLog, replay
from networks import CustomCNN

EASY = EnvironmentSettings()


def test_shows_what_was_played_frame_by_frame():
    torch.manual_seed(0)
    log, seen = ActionLog(), {}

    def observe(step):
        log(step)
        for level, frame in zip(step.levels.tolist(), step.frames, strict=True):
            seen.setdefault(level, []).append(frame.copy())

    episodes = play_episodes(CustomCNN(), range(5), settings=EASY, num_environments=2, max_steps=30, observer=observe)
    for row, level in enumerate(range(5)):
        shown = replay(level, log.actions(level), EASY)
        assert np.array_equal(shown.frames, np.stack(seen[level]))
        assert len(shown.frames) == len(shown.states) == len(shown.actions) == episodes.lengths[row]
        assert shown.rewards.sum() == episodes.returns[row]
        assert shown.solved == episodes.solved[row]
        assert {State.from_bytes(state).level_seed for state in shown.states} == {level}
    assert log.actions(99) == []


def test_stops_where_the_episode_ends():
    shown = replay(3, [4] * 1_200, EASY)
    assert len(shown.frames) == 1_000, "the game's own time-out"
    assert shown.ended
    assert not shown.solved


def test_refuses_what_cannot_be_taken():
    with pytest.raises(ValueError, match="no action to take"):
        replay(0, [], EASY)
    with pytest.raises(ValueError, match="0 to 14"):
        replay(0, [15], EASY)
