"""Milliseconds of one training step of a sweep, Trainer included, by its number of members, against as many runs.

ReLU and TopK members, 32 channels to 128 latents, on rows in memory. The baseline is `ConvSAE` alone, its ReLU and its
TopK step, times the members: what runs of their own would take for their steps (their start, their data and their
validation, which a sweep shares too, are left out). The exponent says how the time grows: 1 is linear. The floor is
what the members' dense arithmetic alone would take at the speed of a large float32 matrix product; the CPU's kernel,
which skips silent latents, may be below it.
"""

import argparse
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from benchmarks.measure import machine, peak_flops, report, say, synchronise
from commands import quieten
from datamodules import ActivationBatch
from datamodules.cache import Statistics
from lightning_modules import ConvSAE, SAESweep, SweepMember
from networks import CustomCNN, SparseAutoencoder, TopKSAE

_CHANNELS, _EXPANSION = 32, 4
_WARM_UP = 10
_RELU = partial(SparseAutoencoder, sparsity_coefficient=1.2, sparsity_knee=30.0, sparsity_warmup_steps=0)
_TOPK = partial(TopKSAE, k=8)


class InMemory(LightningDataModule):
    """Sparse mixtures of 64 directions, the same eight batches again and again."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        directions = torch.randn(64, _CHANNELS, generator=noise)
        active = torch.rand(8 * batch_size, 64, generator=noise) < 0.1
        self.rows: Tensor = ((active * torch.rand(active.shape, generator=noise)) @ directions).to(device)
        self.batch_size, self.agent = batch_size, CustomCNN()
        self.activation_shapes = {"rows": (_CHANNELS,)}

    def statistics(self, tap: str) -> Statistics:
        mean = self.rows.mean(0)
        return Statistics(mean, (self.rows - mean).square().mean().sqrt())

    def train_dataloader(self) -> "InMemory":
        return self

    def __iter__(self) -> Iterator[ActivationBatch]:
        while True:
            for rows in self.rows.split(self.batch_size):
                yield ActivationBatch({"rows": rows}, torch.zeros(len(rows), dtype=torch.int64))


class Clock(Callback):
    """Times windows of steps after the first ones, which compile.

    Attributes:
        windows: seconds a step of each window.
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device, self.windows = steps, device, list[float]()
        self._since = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Note the time at the end of a window."""
        done = trainer.global_step - _WARM_UP
        if done >= 0 and done % self.steps == 0:
            synchronise(self.device)
            now = time.perf_counter()
            if done:
                self.windows.append((now - self._since) / self.steps)
            self._since = now


def milliseconds(module: LightningModule, batch_size: int, steps: int, windows: int, device: torch.device) -> float:
    """Of one step, in the fastest window: others may share the machine."""
    torch._dynamo.reset()
    clock = Clock(steps, device)
    trainer = Trainer(
        accelerator=device.type, devices=1, logger=False, max_steps=_WARM_UP + windows * steps, log_every_n_steps=100,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(module, datamodule=InMemory(batch_size, device))
    return 1e3 * min(clock.windows)


def sweep(members: int) -> SAESweep:
    """Half ReLU members (the first of an odd number too), half TopK."""
    relu = SweepMember("relu_{seed}", _RELU, _EXPANSION, grid={"seed": list(range(-(-members // 2)))})
    topk = SweepMember("topk_{seed}", _TOPK, _EXPANSION, grid={"seed": list(range(members // 2))})
    return SAESweep([relu, topk], tap="rows", in_channels=_CHANNELS)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--batch_size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=30, help="steps of one timed window")
    parser.add_argument("--windows", type=int, default=5)
    arguments = parser.parse_args()
    if min(arguments.members) < 1 or len(set(arguments.members)) < 2:
        parser.error("--members: give two or more different numbers, each at least 1")
    quieten()
    device = torch.device(arguments.device)
    measure = partial(
        milliseconds, batch_size=arguments.batch_size, steps=arguments.steps, windows=arguments.windows, device=device
    )
    alone = {}
    for name, kind in (("relu", _RELU), ("topk", _TOPK)):
        alone[name] = measure(ConvSAE("rows", _EXPANSION, in_channels=_CHANNELS, sae=kind))
        say(f"{name} alone: {alone[name]:.2f} ms a step")
    ours, baseline = {}, {}
    for members in sorted(set(arguments.members)):
        ours[members] = measure(sweep(members))
        baseline[members] = -(-members // 2) * alone["relu"] + members // 2 * alone["topk"]
        say(f"{members} members: {ours[members]:.2f} ms a step, runs of their own {baseline[members]:.2f}")
    most = max(ours)
    even = sorted(members for members in ours if members % 2 == 0) or sorted(ours)  # the same mixture of kinds
    first = even[0]
    exponent = math.log(ours[most] / ours[first]) / math.log(most / first) if most > first else math.nan
    # encoder and decoder forwards; their weights and the latents backwards
    flops = 5 * 2 * arguments.batch_size * _CHANNELS * _CHANNELS * _EXPANSION
    report(
        name="sae_sweep",
        ours=round(ours[most], 2),
        baseline=round(baseline[most], 2),
        ratio=round(baseline[most] / ours[most], 2),
        unit="ms/step",
        floor=round(1e3 * most * flops / peak_flops(device, torch.float32), 2),
        members=most,
        exponent=round(exponent, 2),
        ours_by_members={members: round(value, 2) for members, value in ours.items()},
        baseline_by_members={members: round(value, 2) for members, value in baseline.items()},
        batch_size=arguments.batch_size,
        machine=machine(device),
    )


if __name__ == "__main__":
    main()
