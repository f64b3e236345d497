"""Activations with planted answers, behind the interface of ProbeDataModule; not a test itself."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from datamodules import ProbeBatch
from datamodules.probe_batch import Examples, Split, Subject, SubjectLoader
from networks import CustomCNN

SIZE = 3
ROWS = {"training": 1_500, "validation": 400, "test": 400}


class PlantedProbes(LightningDataModule):
    """A tap `map` [6 3 3] in which the answers are written, a tap `noise` [8] in which nothing is, and controls.

    Channel 0 of `map` stands high where the player is, channels 1 to 4 give the next direction, channel 5 the path
    length; all three everywhere or at one place alike.
    """

    data_name = "natural"

    def __init__(self) -> None:
        super().__init__()
        self.agent = CustomCNN()
        self.agent.weights_hash = "planted"
        shapes: list[tuple[str, str, tuple[int, ...]]] = [
            ("agent", "map", (6, SIZE, SIZE)),
            ("agent", "noise", (8,)),
            ("pixels", "pixels", (3, SIZE, SIZE)),
            ("pixels_pca", "pixels_pca", (3, SIZE, SIZE)),
            ("random_agent", "map", (6, SIZE, SIZE)),
            ("random_agent", "noise", (8,)),
        ]
        self.subjects = [Subject(network, tap, shape, shape) for network, tap, shape in shapes]
        self.done = 0

    def labels(self, split: str) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(sorted(ROWS).index(split))
        count = ROWS[split]
        direction = rng.integers(4, size=count)
        position = rng.uniform(0, SIZE, (count, 2))
        if split == "training":
            position[:90] = SIZE / 2  # the middle is usual there, and not in the other splits
        return {
            "level": rng.integers(100, size=count),
            "direction": direction,
            "direction_tied": rng.random(count) < 0.1,
            "path_length": rng.integers(1, 20, count),
            "cells": np.full((count, 8, 2), -1),
            "target_cell": np.full((count, 2), -1),
            "position": position,
            "target": np.full(count, -1),
            "world_dim": np.full(count, SIZE),
            "held": np.zeros((count, 3), dtype=bool),
        }

    def _with_player(self, labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        labels["cells"][:, 7] = labels["position"].astype(int)
        return labels

    def examples(self, network: str, splits: tuple[Split, ...]) -> dict[str, dict[str, Examples]]:
        found: dict[str, dict[str, Examples]] = {s.tap: {} for s in self.subjects if s.network == network}
        for split in splits:
            labels = self._with_player(self.labels(split))
            generator = torch.Generator().manual_seed(len(network) + ROWS[split])
            levels = torch.from_numpy(labels["level"])
            for subject in self.subjects:
                if subject.network != network:
                    continue
                acts = torch.randn(ROWS[split], *subject.shape, generator=generator)
                if (network, subject.tap) == ("agent", "map"):
                    column, row = labels["position"].astype(int).T
                    acts[torch.arange(len(acts)), 0, SIZE - 1 - row, column] += 8
                    acts[torch.arange(len(acts)), 1 + labels["direction"]] += 2
                    acts[:, 5] += torch.from_numpy(labels["path_length"])[:, None, None]
                found[subject.tap][split] = Examples(acts.bfloat16(), labels, levels)
        return found

    def train_dataloader(self) -> SubjectLoader:
        return SubjectLoader(self, ("training", "validation"))

    def test_dataloader(self) -> SubjectLoader:
        return SubjectLoader(self, ("test",))

    def transfer_batch_to_device(self, batch: ProbeBatch, device: Any, dataloader_idx: int) -> ProbeBatch:
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]
