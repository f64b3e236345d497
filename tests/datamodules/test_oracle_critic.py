import numpy as np
import pytest
import torch

from datamodules import OracleCritic, RolloutDataModule
from datamodules.advantages import generalised_advantages
from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import label_states, move_entity
from tests.datamodules.test_rollouts import FixedPolicy, make


def test_the_oracle_itself_has_the_value_that_the_critic_gives_it():
    """Discounted returns of oracle play, against the critic at the start of each episode."""
    env = VectorEnvironment(EnvironmentSettings(), 64, seed=11)
    critic, discount = OracleCritic(frames=1), 0.99
    env.observe()
    guess = critic(env.get_states(), discount)
    start, steps = guess.copy(), np.zeros(64)
    pairs = []
    for _ in range(150):
        labels = label_states(env.get_states())
        env.act(labels.oracle_action)
        reward, _, first = env.observe()
        steps += 1
        states = env.get_states()
        for slot in np.flatnonzero(first):
            pairs.append((start[slot], reward[slot] * discount ** steps[slot]))
            start[slot], steps[slot] = critic([states[slot]], discount)[0], 0
    env.close()
    guessed, returned = np.array(pairs).T
    assert len(pairs) > 150
    assert abs(guessed.mean() - returned.mean()) < 0.15
    assert np.corrcoef(guessed, returned)[0, 1] > 0.95


def test_every_step_of_the_oracle_raises_the_value_and_standing_still_does_not():
    env = VectorEnvironment(EnvironmentSettings("heist", "hard"), 32, seed=3)
    critic = OracleCritic(frames=1)
    env.observe()
    before = critic(env.get_states(), 0.99)
    total = 0
    for _ in range(40):
        env.act(label_states(env.get_states()).oracle_action)
        _, _, first = env.observe()
        after = critic(env.get_states(), 0.99)
        total += int((after >= before)[~first].sum())
        before = after
    assert total > 0.9 * 40 * 32
    stand = env.get_states()
    env.act(np.full(32, 4))
    env.observe()
    moved = critic(env.get_states(), 0.99) - critic(stand, 0.99)
    assert np.abs(moved).max() < 0.2  # momentum carries the player a little
    env.close()


def test_unreachable_gem_is_worth_nothing():
    env = VectorEnvironment(EnvironmentSettings(), 1)
    env.play_levels([7])
    env.observe()
    state = State.from_bytes(env.get_states()[0])
    free = np.argwhere(state.grid == 100)
    player = label_states([state.to_bytes()]).cells[0, 7]
    far = max(free.tolist(), key=lambda yx: abs(yx[1] - player[0]) + abs(yx[0] - player[1]))
    moved = move_entity(state, "player", (far[1], far[0]))
    walls = moved.grid.copy()
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        x, y = far[1] + dx, far[0] + dy
        if 0 <= x < walls.shape[1] and 0 <= y < walls.shape[0]:
            walls[y, x] = 51
    moved.grid[:] = walls
    assert label_states([moved.to_bytes()]).target[0] == -1
    assert OracleCritic(frames=1)([moved.to_bytes()], 0.99)[0] == 0
    env.close()


def test_weight_is_whole_then_fades():
    critic = OracleCritic(frames=100, constant_frames=50)
    assert [critic.weight(steps) for steps in (0, 50, 100, 125, 150, 999)] == [1, 1, 0.5, 0.25, 0, 0]


def test_it_is_the_baseline_of_advantages_and_leaves_the_values_targets_alone():
    settings = {"num_steps": 24, "discount": 0.98, "gae_lambda": 0.9, "seed": 5}
    plain, helped = make(**settings), make(**settings, critic=OracleCritic(frames=100, constant_frames=10_000))
    mine = plain.collect(FixedPolicy())
    rollout = helped.collect(FixedPolicy())
    assert torch.equal(mine.frames, rollout.frames)
    assert torch.equal(mine.returns, rollout.returns)
    assert not torch.equal(mine.advantages, rollout.advantages)

    env = VectorEnvironment(EnvironmentSettings(), 4, seed=5)
    critic = OracleCritic(frames=1)
    values, rewards, first = [], [], []
    for actions in rollout.actions.view(24, 4).numpy():
        env.observe()
        values.append(critic(env.get_states(), 0.98))
        env.act(actions)
        reward, _, begins = env.observe()
        rewards.append(reward)
        first.append(begins)
    values.append(critic(env.get_states(), 0.98))
    scale = helped.player.normaliser.scale
    expected, _ = generalised_advantages(
        torch.from_numpy(np.stack(rewards)) * scale,
        torch.from_numpy(np.stack(values)) * scale,
        torch.from_numpy(np.stack([first[0], *first])),
        torch.zeros(24, 4, dtype=torch.bool),
        0.98,
        0.9,
    )
    expected = (expected - expected.mean()) / (expected.std() + 1e-8)
    torch.testing.assert_close(rollout.advantages.view(24, 4), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        OracleCritic(frames=0)
    with pytest.raises(ValueError, match="set critic to null"):
        RolloutDataModule(EnvironmentSettings(game="maze"), critic=OracleCritic(frames=1))
