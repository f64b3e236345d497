from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import RolloutDataModule
from datamodules.rollouts import RolloutBatch
from environments import EnvironmentSettings, VectorEnvironment
from networks import AgentOutput

STAY = 4


class FixedPolicy:
    """The same logits on every frame; values say which frame it was."""

    device = torch.device("cpu")

    def __init__(self, logits=None):
        self.logits = torch.zeros(15) if logits is None else logits

    def __call__(self, frames):
        value = frames.float().mean((1, 2, 3)) / 255
        return AgentOutput(self.logits.expand(len(frames), -1), value, {})

    def reference_logits(self, frames):
        return None


class StandingPolicy(FixedPolicy):
    def __init__(self):
        super().__init__(torch.full((15,), -100.0).index_fill(0, torch.tensor([STAY]), 100.0))


def make(**arguments):
    defaults = {"num_environments": 4, "num_steps": 16, "num_epochs": 2, "num_minibatches": 4}
    data = RolloutDataModule(**{**defaults, **arguments})
    data.setup("fit")
    return data


def minibatches(data, policy):
    data.trainer = SimpleNamespace(
        lightning_module=policy, precision_plugin=SimpleNamespace(forward_context=torch.no_grad)
    )
    return data.train_dataloader()


def assert_equal(one: RolloutBatch, other: RolloutBatch):
    for name, left, right in zip(one._fields, one, other, strict=True):
        assert (left is None and right is None) or torch.equal(left, right), name


def test_loader_has_a_length_and_plays_only_when_asked_for_a_batch():
    data = make()
    loader = minibatches(data, FixedPolicy())
    assert len(loader) == 8
    iterator = iter(loader)
    assert data.env_steps == 0
    next(iterator)
    assert data.env_steps == 64
    state = data.state_dict()
    assert len(list(iterator)) == 7
    assert data.env_steps == 64
    assert torch.equal(state["ranks"][0]["generator"], data.state_dict()["ranks"][0]["generator"])


def test_every_row_is_used_once_a_pass():
    data = make()
    batches = list(minibatches(data, FixedPolicy()))
    for one_pass in (batches[:4], batches[4:]):
        rows = torch.cat([batch.advantages for batch in one_pass])
        assert torch.equal(rows.sort().values, data.rollout.advantages.sort().values)
    assert all(len(batch.frames) == 16 for batch in batches)


def test_rows_hold_the_frame_that_was_acted_on():
    data = make(seed=3)
    rollout = data.collect(FixedPolicy())
    environment = VectorEnvironment(EnvironmentSettings(), 4, seed=3)
    for t in range(16):
        _, frames, _ = environment.observe()
        assert np.array_equal(frames, rollout.frames[4 * t : 4 * t + 4].numpy())
        environment.act(rollout.actions[4 * t : 4 * t + 4].numpy())
    torch.testing.assert_close(rollout.log_probs, torch.full((64,), 1 / 15).log())
    assert abs(float(rollout.advantages.mean())) < 1e-5
    assert float(rollout.advantages.std()) == pytest.approx(1, abs=1e-4)


def test_a_time_limit_cuts_and_bootstraps():
    data = make(num_steps=20, time_limit=6, discount=0.9, gae_lambda=1.0)
    batches = list(minibatches(data, StandingPolicy()))
    assert data.tally.metrics() == {"agent/return": 0.0, "agent/solved": 0.0, "agent/episode_length": 6.0}
    cut = torch.zeros(20, 4, dtype=torch.bool)
    cut[[6, 13]] = True  # six steps, then the frame on which it is cut
    values = data.rollout.values.view(20, 4)
    returns = data.rollout.returns.view(20, 4)
    torch.testing.assert_close(returns[0], 0.9**6 * values[6])
    torch.testing.assert_close(returns[7], 0.9**6 * values[13])
    frames = data.rollout.frames.view(20, 4, 64, 64, 3)
    assert not any(torch.equal(frames[6, n], frames[7, n]) for n in range(4))  # another level
    assert all(len(batch.values) == 20 for batch in batches)
    assert not cut.flatten()[data.player.shuffled_rows()].any()


def test_a_time_limit_may_end():
    data = make(num_steps=10, time_limit=3, time_limit_frames=40)
    data.collect(StandingPolicy())
    assert len(data.tally.finished) == 8
    data.collect(StandingPolicy())
    assert len(data.tally.finished) == 8


def test_solved_episodes_are_counted_on_the_episode_that_ended():
    data = make(num_environments=8, num_steps=250, environment=EnvironmentSettings(game="maze"))
    rollout = data.collect(FixedPolicy())
    metrics = data.tally.metrics()
    assert 0 < metrics["agent/solved"] <= 1
    assert metrics["agent/return"] == pytest.approx(10 * metrics["agent/solved"])
    assert rollout.returns.isfinite().all()


def test_state_goes_on_exactly():
    policy = FixedPolicy()
    data = make(time_limit=30, time_limit_frames=100)
    data.collect(policy)
    state = data.state_dict()
    expected = RolloutBatch(*(None if field is None else field.clone() for field in data.collect(policy)))
    resumed = make(time_limit=30, time_limit_frames=100)
    resumed.collect(StandingPolicy())  # is elsewhere by now
    resumed.load_state_dict(state)
    assert_equal(resumed.collect(policy), expected)
    assert resumed.tally.metrics() == data.tally.metrics()
    assert resumed.env_steps == data.env_steps == 128


def test_state_holds_only_what_loads_with_weights_only(tmp_path):
    data = make()
    data.collect(FixedPolicy())
    torch.save(data.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["env_steps"] == 64


def test_a_state_of_other_environments_is_refused():
    state = make().state_dict()
    with pytest.raises(ValueError, match="num_environments 4 there, 2 here"):
        make(num_environments=2).load_state_dict(state)
    other = make(environment=EnvironmentSettings(distribution_mode="hard"))
    with pytest.raises(ValueError, match="distribution_mode 'easy' there, 'hard' here"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_minibatches": 7}, "equal minibatches"),
        ({"environment": EnvironmentSettings(start_level=0, num_levels=200)}, "would train on held-out levels"),
        ({"num_minibatches": 0}, "num_minibatches is 0: at least 1"),
        ({"num_epochs": 0}, "num_epochs is 0: at least 1"),
        ({"num_steps": 0}, "num_steps is 0: at least 1"),
        ({"discount": 1.5}, "discount is 1.5: choose 0 to 1"),
        ({"gae_lambda": -1.0}, "gae_lambda is -1.0: choose 0 to 1"),
        ({"time_limit": 0}, "at least 1 step"),
        ({"time_limit": 9, "num_steps": 1}, "set 2 or more steps"),
        ({"reward_clip": -1.0}, "reward_clip -1.0 must be above 0"),
        ({"seed": -1}, "seed -1 at least 0"),
        ({"time_limit_frames": 100}, "without a time_limit"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
