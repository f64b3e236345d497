"""Counting without looking at values, and a clock that stands still in validation."""

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import Throughput
from callbacks.throughput import count


@dataclass
class Batch:
    activations: dict[str, Tensor] | None = None
    frames: Tensor | None = None


class Steps(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Batch) -> Tensor:
        time.sleep(0.01)
        return self.weight

    def validation_step(self, batch: Batch) -> None:
        time.sleep(0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader([Batch({"conv4a": torch.ones(100, 3)})] * 4, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([Batch()], batch_size=None)


class PlayingData(Data):
    env_steps = 0

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if self.trainer is not None and self.trainer.training:
            self.env_steps += 50
        return batch


def fit(data: LightningDataModule, folder: Path) -> tuple[dict[str, Tensor], str]:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Throughput(every_n_batches=2)],
    )
    trainer.fit(Steps(), data)
    return trainer.callback_metrics, (folder / "metrics.csv").read_text()


def test_counts_what_a_batch_has() -> None:
    maps, rows = torch.ones(5, 3, 8, 8), torch.ones(7, 3)
    assert count(Batch({"conv4a": maps})) == (5, 5 * 64)
    assert count(Batch({"conv4a": maps, "pool4": maps[..., :4, :4]})) == (5, 5 * (64 + 16))
    assert count(Batch({"conv4a": rows})) == (0, 7), "positions are not frames"
    assert count(Batch({"fc1": rows}, frames=torch.ones(7, 64, 64, 3))) == (7, 7)
    assert count(Batch(frames=torch.ones(9, 64, 64, 3))) == (9, 0)
    assert count([torch.ones(3)]) == (0, 0)


def test_logs_activations_per_second_of_training(tmp_path: Path) -> None:
    metrics, logged = fit(Data(), tmp_path)
    assert set(metrics) == {"throughput/activations_per_second"}
    # 200 activations in two steps of 10 ms; the half second of validation between epochs would make it below 400
    assert 450 < metrics["throughput/activations_per_second"] <= 10_000
    assert logged.count("\n") == 1 + 4, "one value for every two steps"


def test_an_interval_must_be_one() -> None:
    with pytest.raises(ValueError, match="every_n_batches is 0"):
        Throughput(0)


def test_frames_are_those_that_were_played(tmp_path: Path) -> None:
    metrics, logged = fit(PlayingData(), tmp_path)
    assert 420 < metrics["throughput/frames_per_second"] <= 5_000
    ratio = metrics["throughput/activations_per_second"] / metrics["throughput/frames_per_second"]
    assert ratio.item() == pytest.approx(2)
    rows = list(csv.DictReader(io.StringIO(logged)))
    assert [int(row["step"]) for row in rows] == [200, 400], "one value an epoch, against what was played"
