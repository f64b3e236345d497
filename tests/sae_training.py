"""Activations with a planted dictionary, behind the interface of ActivationDataModule; not a test itself."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import ActivationBatch
from datamodules.cache import Statistics
from networks import CustomCNN


class PlantedData(LightningDataModule):
    """Rows (or maps) that are sparse non-negative mixtures of unit-length directions, plus an offset, at any scale.

    Batch number k of a run is always the same, also after a resume.
    """

    def __init__(
        self,
        channels: int = 8,
        features: int = 16,
        batch_size: int = 256,
        batches: int = 100,
        size: int | None = None,
        scale: float = 3.0,
        bad_step: int | None = None,
        agent_hash: str = "planted",
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(features, channels, generator=generator)
        self.directions = directions / directions.norm(dim=1, keepdim=True)
        self.offset = torch.randn(channels, generator=generator)
        self.channels, self.size, self.scale = channels, size, scale
        self.batch_size, self.batches, self.bad_step = batch_size, batches, bad_step
        self.agent = CustomCNN()
        self.agent.weights_hash = agent_hash
        self._next = 0

    @property
    def activation_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"planted": (self.channels,) if self.size is None else (self.channels, self.size, self.size)}

    def statistics(self, tap: str) -> Statistics:
        rows = self.sample(10_000, 12345)
        mean = rows.mean(0)
        return Statistics(mean, (rows - mean).square().mean().sqrt())

    def sample(self, rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        features = len(self.directions)
        active = torch.rand(rows, features, generator=generator) < 0.1
        sizes = 0.5 + torch.rand(rows, features, generator=generator)
        return self.scale * ((active * sizes) @ self.directions + self.offset)

    def batch(self, seed: int) -> ActivationBatch:
        rows = self.sample(self.batch_size * (self.size or 1) ** 2, seed)
        inside = None
        if self.size is not None:
            rows = rows.view(self.batch_size, self.size, self.size, self.channels).movedim(-1, 1)
            inside = {"planted": torch.ones(self.batch_size, self.size, self.size, dtype=torch.bool)}
        return ActivationBatch({"planted": rows}, torch.arange(self.batch_size) + seed, inside=inside)

    def train_dataloader(self) -> "PlantedLoader":
        return PlantedLoader(self)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch(1_000_000), self.batch(2_000_000)], batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next = state_dict["next"]


class PlantedFilters(PlantedData):
    """Maps in which features appear at few positions, each with a pattern over the 3 x 3 positions around it."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        filters = torch.randn(6, self.channels, 3, 3, generator=torch.Generator().manual_seed(1))
        self.filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None]

    def statistics(self, tap: str) -> Statistics:
        maps = self.batch(12345).activations["planted"]
        mean = maps.mean((0, 2, 3))
        return Statistics(mean, (maps - mean[:, None, None]).square().mean().sqrt())

    def batch(self, seed: int) -> ActivationBatch:
        assert self.size is not None
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch_size, len(self.filters), self.size, self.size)
        active = torch.rand(shape, generator=generator) < 0.03
        maps = active * (0.5 + torch.rand(shape, generator=generator))
        acts = self.scale * F.conv2d(maps, self.filters.transpose(0, 1), padding=1)
        return ActivationBatch({"planted": acts}, torch.arange(self.batch_size) + seed)


class PlantedLoader:
    def __init__(self, data: PlantedData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batches

    def __iter__(self) -> Iterator[ActivationBatch]:
        while self.data._next < len(self):
            self.data._next += 1
            batch = self.data.batch(self.data._next - 1)
            if self.data._next - 1 == self.data.bad_step:
                batch.activations["planted"][0, 0] = torch.nan
            yield batch
        self.data._next = 0

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def small_trainer(steps: int, **arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "log_every_n_steps": 5,
    }
    return Trainer(max_steps=steps, **(defaults | arguments))
