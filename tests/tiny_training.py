"""The smallest module and data that the command line can be tried on; not a test itself.

A file `signal` in the working directory holds the number of a signal that the process sends itself, once.
Each step adds 1 to a buffer and logs it, so that a resumed run shows whether it really went on.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class TinySettings:
    """A nested group of arguments."""

    game: str = "heist"
    num_threads: int = 2


class TinyModule(LightningModule):
    def __init__(self, width: int = 4, lr: float = 1e-2, kind: Literal["plain", "bad"] = "plain") -> None:
        super().__init__()
        if kind == "bad":
            raise ValueError("model.init_args.kind: bad is no kind;\nuse plain")
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, width)
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.steps += 1
        self.log("tiny/steps", self.steps)
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log_dict({"tiny/loss": self.layer(batch[0]).pow(2).mean(), "tiny/loss_low": 0.0, "tiny/loss_high": 9.0})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


class TinyData(LightningDataModule):
    def __init__(
        self,
        width: int,
        settings: TinySettings = TinySettings(),
        seconds_per_batch: float = 0.0,
        fails_in: Literal["setup", "training"] | None = None,
    ) -> None:
        super().__init__()
        self.signal_file = Path("signal")
        self.width, self.seconds_per_batch, self.fails_in = width, seconds_per_batch, fails_in

    def setup(self, stage: str) -> None:
        if self.fails_in == "setup":
            raise FileNotFoundError("there is no agent at nowhere.safetensors; set --data.init_args.agent")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(64, self.width)), batch_size=1, collate_fn=self.collate)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(4, self.width)), batch_size=4)

    def collate(self, rows: list[tuple[Tensor]]) -> list[Tensor]:
        if self.fails_in == "training":
            raise ValueError("a fault while training")
        if self.signal_file.exists():
            number = int(self.signal_file.read_text())
            self.signal_file.unlink()
            os.kill(os.getpid(), number)
        time.sleep(self.seconds_per_batch)
        return [torch.stack([row[0] for row in rows])]
