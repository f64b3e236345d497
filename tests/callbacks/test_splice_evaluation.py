"""The callback only calls `interpretability.splice`: here is tested when, on what, and what it leaves alone."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import SpliceEvaluation
from environments import EnvironmentSettings
from networks import CustomCNN


class TinySAE(LightningModule):
    """Draws noise in each step, so that its weights show whether a generator was moved."""

    tap = "conv4a"

    def __init__(self) -> None:
        super().__init__()
        self.sae = nn.Conv2d(32, 32, 1)

    def training_step(self, batch: Tensor) -> Tensor:
        noise = torch.rand(1) + random.random() + float(np.random.rand())  # noqa: NPY002
        return (self.sae(batch) * noise.to(batch)).square().mean()

    def validation_step(self, batch: Tensor) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TinyData(LightningDataModule):
    environment = EnvironmentSettings()
    precision = "fp32"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.agent = CustomCNN().eval().requires_grad_(False)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([torch.full((32, 8, 8), float(row)) for row in range(8)], batch_size=2, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([torch.zeros(32, 8, 8)])


def fit(tmp_path, callbacks: list[SpliceEvaluation], **options) -> tuple[Trainer, TinySAE]:
    data = TinyData()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    module = TinySAE()
    arguments = {"max_epochs": 2, "logger": CSVLogger(tmp_path), "log_every_n_steps": 1} | options
    trainer = Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **arguments,
    )
    trainer.fit(module, datamodule=data)
    return trainer, module


def test_evaluates_at_the_end_and_every_so_many_validations(tmp_path, monkeypatch):
    callback = SpliceEvaluation(
        num_levels=3, every_n_validations=2, num_environments=3, max_steps=4, compare_every=1, ablated_levels=2
    )
    steps = []
    evaluate = callback._evaluate
    monkeypatch.setattr(
        callback, "_evaluate", lambda trainer, module: steps.append(trainer.global_step) or evaluate(trainer, module)
    )
    trainer, _ = fit(tmp_path, [callback])
    assert steps == [8, 8]  # after the second validation, and with the final weights
    assert trainer.callback_metrics["splice/levels"] == 3
    assert callback.result.clean.levels.tolist() == [0, 1, 2]
    assert callback.result.clean.lengths.tolist() == [4, 4, 4]
    assert callback.result.zero_ablated.lengths.tolist() == [4, 4]
    assert trainer.callback_metrics["splice/kl"] == pytest.approx(callback.result.metrics()["splice/kl"])
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert steps == [8, 8]
    columns = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert "splice/action_agreement_low" in columns


def test_training_is_bitwise_the_same_with_it(tmp_path):
    callback = SpliceEvaluation(num_levels=1, every_n_validations=1, max_steps=2)
    with_it, without = fit(tmp_path, [callback])[1], fit(tmp_path, [])[1]
    assert torch.equal(with_it.sae.weight, without.sae.weight)
    assert with_it.training == without.training


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="every_n_validations is 0"):
        SpliceEvaluation(every_n_validations=0)
    with pytest.raises(ValueError, match="60000 validation levels"):
        SpliceEvaluation(num_levels=60_000)
    with pytest.raises(ValueError, match="ablated_levels is 4: choose 1 to num_levels, 3"):
        SpliceEvaluation(num_levels=3, ablated_levels=4)
