import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from datamodules import ImitationDataModule
from datamodules.imitation import target_distribution
from environments import EnvironmentSettings
from lightning_modules import BehaviourCloning
from networks import AgentOutput


class Still(nn.Module):
    """A policy that always stands still, and remembers how many frames it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, frames: torch.Tensor, **_) -> AgentOutput:
        self.seen += len(frames)
        logits = torch.zeros(len(frames), 15)
        logits[:, 4] = 50.0
        return AgentOutput(logits, None, {})


def small(**changes) -> ImitationDataModule:
    arguments = {
        "environment": EnvironmentSettings(num_threads=0),
        "num_environments": 8,
        "student_environments": 3,
        "steps_per_epoch": 4,
        "buffer_frames": 64,
        "batch_size": 16,
        "student_from": 0,
        "precision": "fp32",
    }
    return ImitationDataModule(**(arguments | changes))


def attach(data: ImitationDataModule, agent: nn.Module) -> None:
    """Give the data module what a Trainer would."""
    module = BehaviourCloning(compile=False)
    module.agent = agent
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(module)
    module.trainer = data.trainer = trainer
    data.setup("fit")


def test_targets_by_hand():
    """Left with a straight steering action; right, sliding up; the same while stuck; no direction at all."""
    directions, steering = np.array([0b0001, 0b1000, 0b1000, 0]), np.array([1, 8, 8, 4])
    targets = target_distribution(directions, steering, np.array([0, 0, 1, 0], dtype=bool))
    expected = np.zeros((4, 15))
    expected[0, [1, 0, 2]] = 0.75, 0.125, 0.125
    expected[1, [7, 8, 6]] = 0.5, 0.25 + 0.125, 0.125
    expected[2, [7, 8, 6]] = 0.1, 0.8 + 0.05, 0.05
    expected[3, 4] = 1
    np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_targets_are_distributions_and_treat_ties_alike():
    rng = np.random.default_rng(0)
    directions, steering = rng.integers(16, size=200), rng.integers(9, size=200)
    targets = target_distribution(directions, steering, rng.random(200) < 0.3)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    assert (targets >= 0).all()
    tied = target_distribution(np.array([0b1001]), np.array([4]), np.array([False]))[0]
    assert tied[1] == tied[7] == pytest.approx(0.25)


def test_an_epoch_plays_first_and_yields_labelled_batches_of_what_was_played():
    data, agent = small(), Still()
    attach(data, agent)
    loader = data.train_dataloader()
    assert len(loader) == 8 * 4 * 2 // 16
    for epoch in (1, 2):
        batches = list(loader)
        assert len(batches) == 4
        assert data.env_steps == 32 * epoch
        assert agent.seen == 3 * 4 * epoch
        for batch in batches:
            assert batch.frames.shape == (16, 64, 64, 3)
            torch.testing.assert_close(batch.targets.sum(-1), torch.ones(16))
            kept = data._buffer[: data._written].flatten(1)
            for row in batch.frames.flatten(1):
                assert (kept == row).all(1).any()
    data.teardown("fit")


def test_stuck_students_get_the_steering_action_and_are_given_up():
    """A student that never moves is stuck on every frame but each episode's first, and unsolved at `patience`."""
    data = small(
        num_environments=4, student_environments=4, steps_per_epoch=20, buffer_frames=80, batch_size=16, patience=6
    )
    attach(data, Still())
    next(data.batches())
    rows = data._targets.view(20, 4, 15).max(-1).values
    assert (rows[1:6] > 0.8).all()
    assert (rows[0] < 0.8).all()
    assert data.statistics.solved == 0
    assert data.statistics.env_steps == 80
    data.teardown("fit")


def test_the_oracle_plays_alone_until_the_student_starts():
    data, agent = small(student_from=32), Still()
    attach(data, agent)
    list(data.train_dataloader())
    assert agent.seen == 0
    assert np.isnan(data.statistics.accuracy)
    list(data.train_dataloader())
    assert agent.seen == 12
    data.teardown("fit")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment": EnvironmentSettings("maze")}, "heist only"),
        ({"student_environments": 9}, "student_environments 9"),
        ({"buffer_frames": 50}, "buffer_frames 50"),
        ({"batch_size": 17}, "batch_size 17"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        small(**changes)
