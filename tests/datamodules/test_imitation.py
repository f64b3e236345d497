import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from datamodules import ImitationDataModule, imitation
from datamodules.imitation import target_distribution
from environments import EnvironmentSettings
from environments.heist import label_states
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
        "batch_size": 16,
        "samples_per_frame": 2,
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
        frames = torch.cat([batch.frames for batch in batches])
        targets = torch.cat([batch.targets for batch in batches])
        assert frames.shape == (64, 64, 64, 3)
        torch.testing.assert_close(targets.sum(-1), torch.ones(64))
        # every frame with its own target, as often as asked for
        kept = torch.cat([data._frames.flatten(1), data._targets], 1)
        drawn = torch.cat([frames.flatten(1), targets], 1)
        counts = (drawn[:, None] == kept).all(-1).sum(0)
        copies = (kept[:, None] == kept).all(-1).sum(0)  # a level that has just begun may look like another
        assert torch.equal(counts, 2 * copies)
    data.teardown("fit")


def test_stuck_students_get_the_steering_action():
    """A student that never moves is stuck on every frame but each level's first."""
    data = small(num_environments=4, student_environments=4, steps_per_epoch=20, stay=1e9, scattered_share=0.0)
    attach(data, Still())
    next(data.batches())
    rows = data._targets.view(20, 4, 15).max(-1).values
    assert (rows[1:] > 0.8).all()
    assert (rows[0] < 0.8).all()
    assert data.statistics.env_steps == 80
    data.teardown("fit")


def test_levels_begin_in_the_middle():
    """Nobody moves, so only keys that were held from the beginning are."""
    held = {}
    for share in (0.0, 1.0):
        data = small(num_environments=64, student_environments=64, steps_per_epoch=2, stay=1e9, scattered_share=share)
        attach(data, Still())
        next(data.batches())
        held[share] = float(label_states(data._env.get_states()).held.any(-1).mean())
        data.teardown("fit")
    assert held[0.0] == 0
    assert held[1.0] > 0.2


def test_a_resumed_run_plays_other_levels_and_counts_all_ranks_frames(monkeypatch):
    def first_frames(env_steps):
        data = small()
        attach(data, Still())
        data.load_state_dict({"env_steps": env_steps})  # after setup, as Lightning does
        next(data.batches())
        data.teardown("fit")
        return data._frames[:8].clone(), data.env_steps

    (begun, played), (again, _), (resumed, _) = first_frames(0), first_frames(0), first_frames(32)
    assert played == 32
    assert torch.equal(begun, again)
    assert not torch.equal(begun, resumed)
    monkeypatch.setattr(imitation, "world_size", lambda: 2)
    assert first_frames(0)[1] == 64


def test_levels_are_left():
    """Nobody moves, so a frame changes only where another level begins."""
    changed = {}
    for stay in (1e-9, 0.5, 1e9):
        data = small(num_environments=64, student_environments=64, steps_per_epoch=12, stay=stay)
        attach(data, Still())
        next(data.batches())
        frames = data._frames.view(12, 64, -1)
        changed[stay] = float((frames[:-1] != frames[1:]).any(-1).float().mean())
        data.teardown("fit")
    assert changed[1e-9] == 1
    assert 0.05 < changed[0.5] < 0.5  # 1 in 2 where 4 moves or fewer are left, 1 in 20 where 40 are
    assert changed[1e9] == 0


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
        ({"batch_size": 17}, "not 17"),
        ({"stay": 0.0}, "stay 0"),
        ({"scattered_share": 1.5}, "scattered_share 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"samples_per_frame": 0}, "samples_per_frame is 0"),
        ({"random_move_share": 7.0}, "random_move_share is 7"),
        ({"environment": EnvironmentSettings(start_level=0, num_levels=200)}, "would train on held-out levels"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, reason):
    with pytest.raises(ValueError, match=reason):
        small(**changes)
