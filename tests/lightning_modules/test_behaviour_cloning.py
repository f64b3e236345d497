import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import ImitationDataModule
from environments import EnvironmentSettings
from lightning_modules import BehaviourCloning
from lightning_modules.behaviour_cloning import acceptable_action_loss


def test_loss_agrees_with_a_naive_loop():
    logits = torch.randn(20, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    acceptable = torch.rand(20, 15, generator=torch.Generator().manual_seed(1)) < 0.3
    acceptable[:, 4] = True
    total = 0.0
    for row, mask in zip(logits, acceptable, strict=True):
        weights = [float(value.exp()) for value in row]
        total -= torch.log(torch.tensor(sum(w for w, m in zip(weights, mask, strict=True) if m) / sum(weights))).item()
    assert acceptable_action_loss(logits, acceptable).item() == pytest.approx(total / 20, abs=1e-6)


def test_loss_is_zero_where_everything_is_acceptable_and_finite_for_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert acceptable_action_loss(logits, torch.ones(1, 3, dtype=torch.bool)).item() == 0
    assert acceptable_action_loss(logits, torch.tensor([[False, True, False]])).item() == pytest.approx(2e4)


class OneBatch(ImitationDataModule):
    """The same few frames again and again."""

    def train_dataloader(self) -> DataLoader:
        first = next(self.batches())
        return DataLoader([first] * 60, batch_size=None)


def test_it_learns_a_few_frames_by_heart():
    L.seed_everything(0, verbose=False)
    data = OneBatch(
        EnvironmentSettings(num_threads=0), num_environments=16, student_environments=4, steps_per_epoch=1,
        buffer_frames=16, batch_size=16, samples_per_frame=1, precision="fp32",
    )  # fmt: skip
    module = BehaviourCloning(compile=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert trainer.callback_metrics["clone/loss"] < 0.1
    assert trainer.callback_metrics["env_steps"] == data.env_steps
    assert module.agent_metadata()["environment"]["game"] == "heist"
