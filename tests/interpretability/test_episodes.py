import random

import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import label_states
from environments.state import State
from interpretability.episodes import ActionNoise, Episodes, first_states, play_episodes
from interpretability.frame_outputs import FrameOutputs
from networks.custom_cnn import CustomCNN

EASY = EnvironmentSettings()


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    agent.fc3.weight.data *= 20  # a policy that cares about what it sees
    return agent


def same(one: Episodes, other: Episodes) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


def naive_episode(agent, level: int, seed: int, max_steps: int, edits=()) -> tuple[float, int, bool]:
    """One level alone in a one-level environment of procgen's own, without any of the machinery."""
    environment = VectorEnvironment(EnvironmentSettings(start_level=level, num_levels=1), 1)
    generator = np.random.Generator(np.random.Philox(key=[seed, level]))
    total = 0.0
    for step in range(1, max_steps + 1):
        _, frames, _ = environment.observe()
        with torch.no_grad():
            logits = agent(torch.from_numpy(frames).expand(8, -1, -1, -1), edits=edits).logits[0]
        uniforms = torch.from_numpy(generator.random(15, dtype=np.float32))
        gumbel = -torch.log(-torch.log(uniforms.clamp(1e-20, 1 - 1e-7)))
        environment.act(np.array([(logits + gumbel).argmax().item()]))
        reward, _, first = environment.observe()
        total += float(reward[0])
        if first[0]:
            return total, step, bool(reward[0] > 0)
    return total, max_steps, False


@pytest.fixture(scope="module")
def short_levels() -> list[int]:
    """Levels whose gem lies so near that even a poor agent finds it now and then."""
    labels = label_states(first_states(range(200), EASY))
    return labels.level[np.argsort(labels.total_length, kind="stable")][:8].tolist()


def test_agrees_with_playing_each_level_alone(agent, short_levels):
    episodes = play_episodes(
        agent, short_levels, settings=EASY, seed=5, num_environments=3, max_steps=40, precision="fp32"
    )
    assert episodes.levels.tolist() == short_levels
    for row, level in enumerate(short_levels):
        total, length, solved = naive_episode(agent, level, 5, 40)
        found = (episodes.returns[row], episodes.lengths[row], episodes.solved[row], episodes.cut[row])
        assert found == (total, length, solved, not solved), level
    assert 0 < episodes.solved.sum() < len(short_levels), "the test needs both endings"


def test_slots_and_company_change_nothing_in_fp32(agent):
    levels = range(40)
    settings = {"settings": EASY, "precision": "fp32", "max_steps": 16}
    wide = play_episodes(agent, levels, num_environments=32, **settings)
    assert same(wide, play_episodes(agent, levels, num_environments=16, **settings))
    chosen = np.array([3, 22, 39])
    few = play_episodes(agent, chosen, num_environments=1, **settings)
    assert same(few, wide.select(np.isin(wide.levels, chosen)))


def test_identity_edit_gives_the_same_episodes_and_another_seed_others(agent):
    arguments = {"settings": EASY, "num_environments": 8, "max_steps": 40}
    clean = play_episodes(agent, range(12), **arguments)
    assert same(clean, play_episodes(agent, range(12), edits=[("conv4a", nn.Identity())], **arguments))
    seen = [[], []]
    for seed, actions in enumerate(seen):
        play_episodes(agent, [1], seed=seed, observer=lambda s, a=actions: a.extend(s.actions), **arguments)
    assert seen[0] != seen[1]


def test_the_games_own_time_out_ends_an_episode():
    agent = CustomCNN().eval()
    agent.fc3.weight.data.zero_()
    agent.fc3.bias.data = torch.nn.functional.one_hot(torch.tensor(4), 15).float()
    episodes = play_episodes(agent, range(2), settings=EASY, greedy=True)
    assert episodes.lengths.tolist() == [1000, 1000]
    assert not episodes.cut.any()
    assert not episodes.solved.any()
    assert not episodes.returns.any()


def test_observer_sees_every_step_of_every_level_once(agent):
    seen: list[tuple[int, int]] = []

    def observe(step):
        assert step.frames.shape == (len(step.levels), 64, 64, 3)
        assert step.logits.shape == (len(step.levels), 15)
        seen.extend(zip(step.levels.tolist(), step.steps.tolist(), strict=True))

    episodes = play_episodes(
        agent, range(7), settings=EASY, num_environments=3, max_steps=9, greedy=True, observer=observe
    )
    expected = [
        (level, step)
        for level, length in zip(episodes.levels.tolist(), episodes.lengths.tolist(), strict=True)
        for step in range(length)
    ]
    assert sorted(seen) == expected


def test_noise_depends_on_seed_level_and_step_only():
    noise = ActionNoise(7, 3, 15)
    noise.start(np.array([0, 2]), np.array([11, 12]))
    draws = [noise(np.array([0, 2]), np.array([step, step])) for step in range(130)]
    for slot, level in enumerate((11, 12)):
        expected = np.random.Generator(np.random.Philox(key=[7, level])).random((130, 15), dtype=np.float32)
        assert np.array_equal(np.stack([draw[slot] for draw in draws]), expected)


class Zero(nn.Module):
    def forward(self, acts):
        return acts * 0 + 0.5


class HiddenGradient(nn.Module):
    def forward(self, acts):
        return acts.detach() / 2


class Constant(nn.Module):
    def forward(self, acts):
        return torch.full_like(acts, 0.5)


def count_passes(agent, edits) -> int:
    generator = np.random.default_rng(0)
    outputs_of = FrameOutputs(agent, edits, 4, "fp32")
    passes = []
    handle = agent.register_forward_hook(lambda *_: passes.append(1))
    slots = np.arange(4)
    frames = [generator.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8) for _ in range(3)]
    for batch in (frames[0], frames[0], frames[1], frames[2]):
        logits, values = outputs_of(batch, slots)
        with torch.no_grad():
            expected = agent.forward(torch.from_numpy(batch), edits=edits)
        torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, expected.value, atol=1e-4, rtol=1e-4)
    handle.remove()
    return len(passes)


def test_runs_the_agent_only_where_it_could_answer_differently(agent):
    assert count_passes(agent, []) == 3  # the repeated frame costs nothing
    assert count_passes(agent, [("conv4a", Constant())]) == 1
    assert count_passes(agent, [("conv4a", HiddenGradient())]) == 3
    assert count_passes(agent, [("logits", Constant())]) == 3  # the value still depends on the frame
    assert count_passes(agent, [("conv4a", Zero())]) == 3  # a path remains, so it is not taken for constant


def test_leaves_generators_and_modes_alone(agent):
    edit = nn.Dropout(0.5).train()
    state = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    play_episodes(agent, [0, 1], settings=EASY, max_steps=3, edits=[("conv4a", edit)])
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])  # noqa: NPY002
    assert state[2] == random.getstate()
    assert edit.training
    assert not agent.training


def test_refuses_what_cannot_be_played(agent):
    with pytest.raises(ValueError, match="distinct seeds"):
        play_episodes(agent, [1, 1], settings=EASY)
    with pytest.raises(ValueError, match="max_steps 0"):
        play_episodes(agent, [1], settings=EASY, max_steps=0)
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        play_episodes(agent, [1], settings=EASY, edits=[("conv9", nn.Identity())])
    with pytest.raises(ValueError, match="this CustomCNN chooses among 9 actions, the game has 15"):
        play_episodes(CustomCNN(num_actions=9), [1], settings=EASY)


def test_first_states_are_those_of_the_levels():
    states = first_states([3, 4, 5], EASY, num_environments=2)
    assert [State.from_bytes(state).fields["current_level_seed"] for state in states] == [3, 4, 5]
