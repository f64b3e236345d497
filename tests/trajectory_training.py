"""A few planted windows and what trains on them; not a test itself."""

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from datamodules import TrajectoryBatch
from environments import EnvironmentSettings
from networks import GAMMA, DecisionTransformer, TrajectoryWindow

CONTEXT = 5


def planted_batch(count: int = 8, features: bool = True) -> TrajectoryBatch:
    """Windows on which the action is the return asked for, and features are the same everywhere.

    The last two steps of every other window are padding.
    """
    draw = torch.Generator().manual_seed(0)
    returns = 3 * torch.randint(0, 4, (count, CONTEXT), generator=draw)
    mask = torch.ones(count, CONTEXT, dtype=torch.bool)
    mask[::2, 3:] = False
    frames = torch.randint(0, 256, (count, CONTEXT, 64, 64, 3), dtype=torch.uint8, generator=draw)
    actions = torch.where(mask, returns, 14)  # what stands in padding is wrong on purpose
    times = torch.arange(CONTEXT).expand(count, CONTEXT)
    window = TrajectoryWindow(frames, actions, returns.float(), times, mask)
    seen = torch.zeros(count, CONTEXT, 512).half() if features else None
    return TrajectoryBatch(window, {}, seen)


def rows_of(batch: TrajectoryBatch, rows: slice) -> TrajectoryBatch:
    """Some of the windows."""
    window = TrajectoryWindow(*(part[rows] for part in batch.window))
    return TrajectoryBatch(window, {}, None if batch.features is None else batch.features[rows])


class PlantedData(LightningDataModule):
    """The same batch again and again."""

    def __init__(self, steps: int = 100, frames: bool = True, context: int = CONTEXT) -> None:
        super().__init__()
        self.steps, self.context, self.frames, self.features = steps, context, frames, None
        self.discount = GAMMA
        self.environment = EnvironmentSettings(num_threads=0)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([planted_batch()] * self.steps, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(
            [rows_of(planted_batch(), slice(0, 6)), rows_of(planted_batch(), slice(6, 8))], batch_size=None
        )


def small_network() -> DecisionTransformer:
    """Two blocks on the shipped sizes' features."""
    return DecisionTransformer(width=32, depth=2, heads=2, context=CONTEXT, encoder_tap="fc2", frozen_encoder=True)
