"""Activations a second over all processes that train one autoencoder together, against one process alone.

Both train 32 channels to 128 latents on activations in memory, through Lightning's Trainer with the counter of firings
on, for each batch size (of every process). On a CPU the processes share the threads that the one has to itself. The
floor is as many times the one process as there are processes, which is what they would reach if they need not talk.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from benchmarks.measure import machine, report, say, synchronise
from callbacks import Throughput
from commands import quieten
from datamodules import ActivationBatch
from datamodules.cache import Statistics
from datamodules.ranks import rank
from lightning_modules import ConvSAE
from networks import CustomCNN

_CHANNELS, _ROWS = 32, 2**19
_WARM_UP = 20  # steps, in which the loss is compiled


class Loader:
    """Whole batches of noise, one after another through memory."""

    def __init__(self, batch_size: int, steps: int) -> None:
        self._batch_size, self._steps = batch_size, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[ActivationBatch]:
        rows = torch.randn(_ROWS, _CHANNELS, generator=torch.Generator().manual_seed(rank())).relu()
        batches = rows.split(self._batch_size)
        levels = torch.zeros(self._batch_size, dtype=torch.int64)
        for index in range(self._steps):
            yield ActivationBatch({"tap": batches[index % len(batches)]}, levels)


class Noise(LightningDataModule):
    """What `ConvSAE` asks of its data."""

    def __init__(self, batch_size: int, steps: int) -> None:
        super().__init__()
        self.batch_size, self.steps = batch_size, steps
        self.agent = CustomCNN()
        self.activation_shapes = {"tap": (_CHANNELS,)}

    def statistics(self, tap: str) -> Statistics:
        """Those of the positive half of a normal distribution, about."""
        return Statistics(torch.full((_CHANNELS,), 0.4), torch.tensor(0.58))

    def train_dataloader(self) -> Loader:
        """Batches for every step."""
        return Loader(self.batch_size, self.steps)


class Clock(Callback):
    """Writes the seconds from the end of the warm-up to the end, as the first process sees them."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads, self.start = path, threads, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Share the threads."""
        torch.set_num_threads(self.threads)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin after the warm-up."""
        if batch_idx == _WARM_UP:
            trainer.strategy.barrier()
            synchronise(pl_module.device)
            self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        synchronise(pl_module.device)
        if trainer.is_global_zero:
            self.path.write_text(str(time.perf_counter() - self.start))


def measure(accelerator: str, devices: int, batch_size: int, steps: int, threads: int) -> float:
    """Activations a second over so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds"
        trainer = Trainer(
            default_root_dir=folder, accelerator=accelerator, devices=devices,
            strategy="ddp_spawn" if devices > 1 else "auto", max_steps=_WARM_UP + steps, limit_val_batches=0,
            logger=False, enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            callbacks=[Throughput(), Clock(path, max(1, threads // devices))],
        )  # fmt: skip
        trainer.fit(ConvSAE("tap"), datamodule=Noise(batch_size, _WARM_UP + steps))
        return devices * batch_size * steps / float(path.read_text())


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4_096, 32_768], help="of each process")
    parser.add_argument("--activations", type=int, default=2**23, help="timed, of each process")
    arguments = parser.parse_args()
    quieten()
    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else os.cpu_count() or 1
    cases = []
    for batch_size in arguments.batch_sizes:
        steps = max(1, arguments.activations // batch_size)
        alone, together = (
            measure(arguments.accelerator, devices, batch_size, steps, threads) for devices in (1, arguments.devices)
        )
        say(f"batches of {batch_size}: {alone:.0f} activations/s alone, {together:.0f} over {arguments.devices}")
        cases.append({"batch_size": batch_size, "ours": round(together), "baseline": round(alone)})
    worst = min(cases, key=lambda case: case["ours"] / case["baseline"])
    report(
        name="sae_ranks",
        ours=worst["ours"],
        baseline=worst["baseline"],
        ratio=round(worst["ours"] / worst["baseline"], 2),
        unit="activations/s",
        floor=arguments.devices * worst["baseline"],
        cases=[case | {"ratio": round(case["ours"] / case["baseline"], 2)} for case in cases],
        devices=arguments.devices,
        machine=machine(torch.device("cuda" if arguments.accelerator == "gpu" else "cpu")),
    )


if __name__ == "__main__":
    main()
