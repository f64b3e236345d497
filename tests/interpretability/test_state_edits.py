import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings, render_states
from interpretability.episodes import PlayedStep, play_episodes
from interpretability.state_edits import Seen, StateEdit
from networks import CustomCNN, DecisionTransformer

EASY = EnvironmentSettings()


class PushedByState(StateEdit):
    """Edit of the logits: up where the level's seed is even, else down."""

    def see(self, states):
        from environments import State

        self.actions = [5 if State.from_bytes(state).level_seed % 2 == 0 else 3 for state in states]

    def forward(self, logits):
        return nn.functional.one_hot(torch.tensor(self.actions), 15) * 100.0


def test_states_are_those_of_the_frames_and_seeing_them_changes_nothing() -> None:
    torch.manual_seed(0)
    agent, seen, steps = CustomCNN().eval(), Seen(), []

    def look(step: PlayedStep) -> None:
        frames = render_states(seen.states[: len(step.slots)], EASY)
        assert np.array_equal(frames, step.frames)
        assert len(seen.acts) >= len(step.slots)
        steps.append(len(step.slots))

    told = {"settings": EASY, "max_steps": 12, "num_environments": 3, "precision": "fp32"}
    played = play_episodes(agent, range(5), edits=[("conv4a", seen)], observer=look, **told)
    plain = play_episodes(agent, range(5), **told)
    assert np.array_equal(played.lengths, plain.lengths)
    assert np.array_equal(played.returns, plain.returns)
    assert {3, 2} <= set(steps), "a last batch of fewer slots is padded, and cut again"


def test_each_slot_undergoes_what_its_own_state_says() -> None:
    agent, actions = CustomCNN().eval(), {}

    def look(step: PlayedStep) -> None:
        actions.update(dict(zip(step.levels.tolist(), step.actions.tolist(), strict=True)))

    play_episodes(agent, range(5), settings=EASY, edits=[("logits", PushedByState())], max_steps=2, observer=look,
                  num_environments=3)  # fmt: skip
    assert actions == {level: 5 if level % 2 == 0 else 3 for level in range(5)}


def test_a_network_that_remembers_is_refused() -> None:
    with pytest.raises(ValueError, match="remembers an episode"):
        play_episodes(DecisionTransformer(), [0], settings=EASY, edits=[("logits", Seen())], max_steps=1)
