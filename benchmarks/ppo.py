"""Frames a second of PPO as `configs/ppo_impala.yaml` runs it, Trainer included, against a plain loop.

Both play heist with 64 x 256 frames a rollout, 3 passes, 8 minibatches, in one process on one device. One rollout of
each warms up (ours compiles meanwhile), the next ones are timed in turn. The floor is what the network's arithmetic
alone would take, at the speed of a large bfloat16 matrix product: a rollout computes each frame once, and thrice per
pass for the update (a backward pass costs two forward ones).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Trainer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Stopwatch, machine, peak_flops, report, say, synchronise
from benchmarks.plain_ppo import PlainPPO
from commands import quieten
from datamodules import RolloutDataModule
from environments import VectorEnvironment
from lightning_modules import PPOImpala
from networks import CustomCNN


class Timed(RolloutDataModule):
    """Notes when each rollout begins, and what of it the environments take.

    Attributes:
        starts: time at the beginning of every rollout, in seconds.
    """

    def __init__(self, watch: Stopwatch, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.watch, self.starts = watch, list[float]()
        self.collect = watch.timed("collect", self.collect)  # type: ignore[method-assign]

    def _minibatches(self) -> Any:
        if len(self.starts) == 1:  # the first rollout compiled
            self.watch.seconds.clear()
        self.starts.append(time.perf_counter())
        yield from super()._minibatches()


def ours(device: torch.device, rollouts: int, sizes: dict[str, int]) -> tuple[float, dict[str, float]]:
    """Frames a second of our PPO over `rollouts` rollouts after the first, and seconds by part."""
    watch = Stopwatch(device)
    data = Timed(watch, **sizes)
    module = PPOImpala(CustomCNN(), compile=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in ("act", "observe"):
            timed = _method(getattr(VectorEnvironment, name), name, watch)
            stack.enter_context(mock.patch.object(VectorEnvironment, name, timed))
        trainer = Trainer(
            default_root_dir=folder, accelerator=device.type, devices=1, precision="bf16-mixed", logger=False,
            max_epochs=rollouts + 1, gradient_clip_val=0.5, enable_checkpointing=False, enable_model_summary=False,
            enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        synchronise(device)
    seconds = time.perf_counter() - data.starts[1]
    parts = watch.seconds
    environment = parts["act"] + parts["observe"]
    by_part = {
        "environment": environment,
        "policy": parts["collect"] - environment,
        "update": seconds - parts["collect"],
    }
    return rollouts * data.frames_per_rollout / seconds, by_part


def _method(original: Callable[..., Any], name: str, watch: Stopwatch) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        return watch.timed(name, original)(self, *args)

    return method


def plain(device: torch.device, rollouts: int, sizes: dict[str, int]) -> float:
    """Frames a second of the plain loop over `rollouts` rollouts after a short warm-up."""
    loop = PlainPPO(
        device, sizes["num_environments"], sizes["num_steps"], sizes["num_epochs"], sizes["num_minibatches"]
    )
    steps, loop.steps = loop.steps, 8
    loop.update(*loop.rollout())
    loop.steps = steps
    synchronise(device)
    start = time.perf_counter()
    for _ in range(rollouts):
        loop.update(*loop.rollout())
    synchronise(device)
    return rollouts * steps * sizes["num_environments"] / (time.perf_counter() - start)


def flops_per_frame(epochs: int) -> float:
    """Operations of one frame, played once and learnt from in so many passes."""
    network = CustomCNN()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 64, 64, 3))
    return counter.get_total_flops() * (1 + 3 * epochs)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rollouts", type=int, default=1, help="timed rollouts of each")
    parser.add_argument("--num_environments", type=int, default=64)
    parser.add_argument("--num_steps", type=int, default=256)
    arguments = parser.parse_args()
    quieten()
    device = torch.device(arguments.device)
    sizes = {
        "num_environments": arguments.num_environments,
        "num_steps": arguments.num_steps,
        "num_epochs": 3,
        "num_minibatches": 8,
    }
    say(f"plain loop, {arguments.rollouts} rollout(s) of {sizes}")
    baseline = plain(device, arguments.rollouts, sizes)
    say(f"{baseline:.0f} frames/s; ours, compiling first")
    speed, parts = ours(device, arguments.rollouts, sizes)
    floor = peak_flops(device, torch.bfloat16) / flops_per_frame(sizes["num_epochs"])
    total = sum(parts.values())
    report(
        name="ppo",
        ours=round(speed, 1),
        baseline=round(baseline, 1),
        ratio=round(speed / baseline, 2),
        unit="frames/s",
        floor=round(floor, 1),
        time_share={name: round(seconds / total, 3) for name, seconds in parts.items()},
        sizes=sizes,
        machine=machine(device),
    )


if __name__ == "__main__":
    main()
