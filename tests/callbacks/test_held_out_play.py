"""The callback only calls `play_episodes`: here is tested when, on what, where it logs, and what it leaves alone."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import HeldOutPlay
from datamodules import RolloutDataModule
from environments import EnvironmentSettings
from interpretability.episodes import play_episodes
from lightning_modules import PPOImpala
from networks import CustomCNN

FRAMES = 32  # of a rollout
FEW = {"num_levels": 3, "num_environments": 3, "max_steps": 5}


class Finished(RolloutDataModule):
    """Training episodes have ended with a return of 7, so that there is something to take the held-out one from."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.tally.finished.append((7.0, 1.0, 30.0))


def fit(tmp_path, callbacks, epochs=4, agent=None, ckpt_path=None) -> Trainer:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    module = PPOImpala(agent or CustomCNN())
    data = Finished(num_environments=4, num_steps=8, num_epochs=1, num_minibatches=2)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, "ppo", "run"),
        callbacks=[*callbacks, ModelCheckpoint(save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1000,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def logged(tmp_path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(tmp_path / "ppo/run"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_plays_before_every_so_many_epochs_and_at_the_end(tmp_path):
    callback = HeldOutPlay(every_n_epochs=2, **FEW)
    trainer = fit(tmp_path, [callback])
    assert [step for step, _ in logged(tmp_path, "held_out/return")] == [0, 2 * FRAMES, 4 * FRAMES]
    expected = play_episodes(
        trainer.lightning_module.agent,
        range(3),
        settings=EnvironmentSettings(),
        num_environments=3,
        max_steps=5,
        precision="fp32",
    ).metrics("held_out")
    found = {name: float(trainer.callback_metrics[name]) for name in expected}
    assert found == pytest.approx(expected)
    assert found["held_out/solved_high"] > found["held_out/solved"]
    # training's return is known from the first epoch's end on
    assert logged(tmp_path, "held_out/gap") == [(2 * FRAMES, 7.0), (4 * FRAMES, 7.0)]


def test_a_resumed_run_plays_when_the_whole_one_would(tmp_path):
    fit(tmp_path, [HeldOutPlay(every_n_epochs=2, **FEW)], epochs=1)
    callback = HeldOutPlay(every_n_epochs=2, **FEW)
    played = []
    callback._play = lambda trainer, module: played.append(trainer.datamodule.env_steps) or {}
    fit(tmp_path, [callback], epochs=4, ckpt_path=tmp_path / "ppo/run/checkpoints/last.ckpt")
    assert played == [2 * FRAMES, 4 * FRAMES]


def test_training_is_bitwise_the_same_with_it_and_nothing_is_compiled_anew(tmp_path):
    compiled: list[int] = []

    def backend(graph, inputs):
        compiled.append(1)
        return graph.forward

    outcomes = []
    for name, callbacks in (("without", []), ("with", [HeldOutPlay(every_n_epochs=1, **FEW)])):
        torch._dynamo.reset()
        compiled.clear()
        torch.manual_seed(1)
        agent = CustomCNN()
        agent.conv1a.requires_grad_(False)
        agent.compile(backend=backend)
        trainer = fit(tmp_path / name, callbacks, epochs=2, agent=agent)
        module = trainer.lightning_module
        modes = [part.training for part in module.modules()]
        wanted = [weight.requires_grad for weight in module.parameters()]
        generators = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
        outcomes.append((module.state_dict(), modes, wanted, generators, len(compiled)))
    (weights, *others), (other_weights, *same) = outcomes
    assert others == same
    assert others[-1] > 0
    for name, weight in weights.items():
        assert torch.equal(weight, other_weights[name]), name


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="every_n_epochs is 0"):
        HeldOutPlay(every_n_epochs=0)
    with pytest.raises(ValueError, match="60000 validation levels"):
        HeldOutPlay(num_levels=60_000)


def test_where_there_is_nothing_to_play_is_refused():
    played = SimpleNamespace(datamodule=RolloutDataModule())
    HeldOutPlay(**FEW).setup(played, PPOImpala(CustomCNN()), "fit")
    with pytest.raises(ValueError, match="LightningModule trains none"):
        HeldOutPlay(**FEW).setup(played, LightningModule(), "fit")
    with pytest.raises(ValueError, match="have no environment"):
        HeldOutPlay(**FEW).setup(SimpleNamespace(datamodule=LightningDataModule()), PPOImpala(CustomCNN()), "fit")
