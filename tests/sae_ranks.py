"""What two ranks, or one process, do with the same activations; not a test itself. Writes OUT/rank_K.pt for the test.

Arguments: the folder OUT, and the agent file.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import ActivationBatch, ActivationDataModule, PlaySettings
from datamodules.ranks import rank, world_size
from lightning_modules import ConvSAE
from networks import SparseAutoencoder, TopKSAE
from tests.sae_training import PlantedData, small_trainer

FROZEN = 1e-30  # a learning rate: what it adds to a weight is lost in rounding
STEPS = 40
PARTS = 5  # of the planted data's validation: the ranks' shares differ in size
Result = dict[str, Any]


class SharedData(PlantedData):
    """Ranks take the rows of each training batch, and the validation batches, in turns."""

    def batch(self, seed: int) -> ActivationBatch:
        whole = super().batch(seed)
        if seed >= self.batches:  # of the validation
            return whole
        share = slice(rank(), None, world_size())
        return ActivationBatch({tap: acts[share] for tap, acts in whole.activations.items()}, whole.levels[share])

    def val_dataloader(self) -> DataLoader:
        mine = range(1_000_000, 1_000_000 + PARTS)[rank() :: world_size()]
        return DataLoader([self.batch(seed) for seed in mine], batch_size=None)


def make_trainer(world: int, steps: int) -> Trainer:
    return small_trainer(
        steps,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        use_distributed_sampler=False,
        limit_val_batches=1.0,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=None,
        val_check_interval=10_000,
    )


def fit(world: int, data: Any, **arguments: Any) -> Result:
    """Train, validate; what there is afterwards."""
    torch.manual_seed(0)
    module = ConvSAE(**{"expansion": 2, "compile": False, "warmup_steps": 5, "resample_every": None, **arguments})
    trainer = make_trainer(world, STEPS)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    metrics = trainer.callback_metrics.items()
    return {
        "metrics": {name: float(value) for name, value in metrics if not name.startswith("sae/train")},
        "weights": module.sae.state_dict(),
        "firing": dict(module.firing.named_buffers()),
        "latents": module.latent_columns,
    }


def run(world: int, out: Path, agent: str) -> dict[str, Result]:
    """Every experiment, by name."""
    relu = partial(SparseAutoencoder, sparsity_warmup_steps=10)
    planted: dict[str, Any] = {"tap": "planted"}
    recorded = ActivationDataModule(
        agent,
        ["conv4a"],
        num_frames=320,
        validation_frames=200,
        positions_per_frame=4,
        batch_size=4,
        validation_batch_size=16,
        play=PlaySettings(environments=4, steps=8, random_start=4),
        cache_dir=str(out / "cache"),
    )
    return {
        "learnt": fit(world, SharedData(), sae=relu, **planted),
        "compiled": fit(world, SharedData(), sae=relu, compile=True, **planted),  # by the kernel, where it can be had
        "resampled": fit(world, SharedData(), sae=relu, resample_every=8, dead_window=500, **planted),
        "frozen": fit(world, SharedData(), sae=partial(TopKSAE, k=2), learning_rate=FROZEN, dead_window=700, **planted),
        "recorded": fit(world, recorded, tap="conv4a", learning_rate=FROZEN),
    }


def plain(value: Any) -> Any:
    """Tensors and numbers alone, so that they load without unpickling."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return value.detach().clone() if isinstance(value, Tensor) else value


def main(out: Path, agent: str) -> None:
    results = run(2, out, agent)
    torch.save(plain(results), out / f"rank_{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
