"""How fast activations reach what learns from them: shuffled batches from a cache, and a stream of fresh ones.

The cache is read as training reads it, whole shuffled batches of mapped shards, against a plain memory copy of the same
bytes: shard after shard, in order, to memory that was written before. Its shards hold one recorded block again and
again, for what a byte says does not matter to who copies it. A process of its own reads such a cache of 10 million
positions once, and its peak memory is reported.

The stream is measured in frames a second over whole turns of its pool, each of which hands out one block's worth of
rows and records one block. Its floor is what playing and the agent's forward passes take by themselves, one after the
other: 1 / (1 / environment + 1 / forward).

Each figure is the median over repeats, in which all of them take turns; a ratio is the median of the repeats' ratios.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine, report, say, synchronise
from commands import quieten
from datamodules import PlaySettings
from datamodules.activation_loaders import CacheLoader, Position, StreamLoader
from datamodules.cache import ActivationCache, refuse_if_too_large, statistics
from datamodules.recorder import MAX_POSITIONS, Recorder, Rows
from environments import EnvironmentSettings, VectorEnvironment
from networks import autocast, load_agent

_AGENT = "pretrained/heist_easy_customcnn_seed0.safetensors"
_WARM_UP = 4  # environment steps and forward passes


class Repeating(Recorder):
    """Records one block, and gives it again whenever a block is asked for."""

    _kept: Rows | None = None

    @property
    def forks(self) -> bool:
        """Not: it keeps what it recorded."""
        return False

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        """Block 0, whole or its beginning."""
        if self._kept is None:
            self._kept = super().block(0)
        count = self.frames_per_block if frames is None else frames
        if progress is not None:
            progress(count)
        return {name: column[: count * self.rows_per_frame] for name, column in self._kept.items()}


def make_recorder(arguments: argparse.Namespace, kind: type[Recorder] = Recorder) -> Recorder:
    """What a run of the main job records with."""
    return kind(
        load_agent(arguments.agent).requires_grad_(False),
        EnvironmentSettings(),
        [arguments.tap],
        positions_per_frame=MAX_POSITIONS,
        play=PlaySettings(steps=arguments.steps),
        device=arguments.device,
    )


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """What a call takes."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def turns(tasks: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each task in each repeat."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats):
        for name, task in tasks.items():
            times[name].append(seconds(task, device))
        say(f"repeat {repeat + 1}: " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in times.items()))
    return times


def measure_cache(cache: ActivationCache, batch_size: int, repeats: int) -> dict[str, float]:
    """Gigabytes a second of shuffled batches and of a plain copy."""
    shards = cache.open()
    columns = [
        column.flatten().view(torch.uint8).numpy()
        for shard in shards
        for name, column in shard.items()
        if not name.startswith("sums/")
    ]
    loader = CacheLoader(shards, batch_size, seed=0, position=Position())
    kept = len(loader) * batch_size / sum(len(shard["levels"]) for shard in shards)
    total = sum(column.nbytes for column in columns)
    places = [np.empty_like(column) for column in columns]

    def copy() -> None:
        for column, place in zip(columns, places, strict=True):
            np.copyto(place, column)

    def read() -> None:
        for _ in loader:
            pass

    copy()  # from now on the files' pages and the copy's are in memory
    times = turns({"copy": copy, "batches": read}, repeats, torch.device("cpu"))
    pairs = zip(times["copy"], times["batches"], strict=True)
    return {
        "ours": round(kept * total / median(times["batches"]) / 1e9, 3),
        "baseline": round(total / median(times["copy"]) / 1e9, 3),
        "ratio": round(median(kept * plain / ours for plain, ours in pairs), 3),
    }


def measure_stream(recorder: Recorder, batch_size: int, repeats: int) -> dict[str, float]:
    """Frames a second of the stream, of the environment and of forward passes."""
    frames = recorder.frames_per_block
    say(f"recording the 5 blocks that a stream of {frames} frames a block begins with")
    loader = StreamLoader(recorder, recorder.block(0), 2**40, batch_size, seed=0, position=Position())
    batches = iter(loader)
    batches_per_block = frames * recorder.rows_per_frame // batch_size
    environment = VectorEnvironment(recorder.settings, recorder.play.environments)
    actions = np.random.default_rng(0).integers(environment.num_actions, size=(recorder.play.steps, 64))
    picture = environment.observe()[1]

    def play(steps: int = recorder.play.steps) -> None:
        for chosen in actions[:steps]:
            environment.act(chosen[: recorder.play.environments])
            environment.observe()

    def forward(steps: int = recorder.play.steps) -> None:
        with torch.no_grad(), autocast(recorder.precision, recorder.device):
            for _ in range(steps):
                recorder.agent(torch.from_numpy(picture).to(recorder.device), record=recorder.taps)

    def stream() -> None:
        for _ in islice(batches, batches_per_block):
            pass

    play(_WARM_UP)
    forward(_WARM_UP)
    stream()
    times = turns({"environment": play, "forward": forward, "stream": stream}, repeats, recorder.device)
    environment.close()
    rates = {name: round(frames / median(values), 1) for name, values in times.items()}
    each = zip(*times.values(), strict=True)
    return {
        "ours": rates["stream"],
        "environment": rates["environment"],
        "forward": rates["forward"],
        "floor": round(1 / (1 / rates["environment"] + 1 / rates["forward"]), 1),
        "ratio": round(median((playing + passing) / ours for playing, passing, ours in each), 3),
    }


def read_once(folder: str, arguments: argparse.Namespace, frames: int, answer: Any) -> None:
    """In a process of its own: open a cache, take its statistics, read an epoch; answers with the peak memory."""
    cache = ActivationCache(folder, "benchmark", make_recorder(arguments, Repeating), frames)
    shards = cache.open()
    statistics(shards, arguments.tap)
    for batch in CacheLoader(shards, arguments.batch_size, seed=0, position=Position()):
        batch.activations[arguments.tap].float().sum()
    lines = Path("/proc/self/status").read_text().splitlines()
    answer.put(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6)


def measure_memory(folder: str, arguments: argparse.Namespace, frames: int) -> float:
    """Gigabytes of memory at most, mapped files included, of a process that reads the cache once."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=read_once, args=(folder, arguments, frames, answer))
    process.start()
    peak = answer.get(timeout=600)
    process.join()
    return round(float(peak), 3)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--agent", default=_AGENT)
    parser.add_argument("--tap", default="conv4a")
    parser.add_argument("--positions", type=int, default=10_000_000, help="in the cache")
    parser.add_argument("--batch_size", type=int, default=4_096)
    parser.add_argument("--steps", type=int, default=128, help="of a recorded block, in each of 64 environments")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    quieten()
    device = torch.device(arguments.device)
    recorder = make_recorder(arguments)
    frames = -(-arguments.positions // recorder.rows_per_frame)
    with tempfile.TemporaryDirectory() as folder:
        cache = ActivationCache(folder, "benchmark", make_recorder(arguments, Repeating), frames)
        refuse_if_too_large([cache])
        cache.build()
        cached = measure_cache(cache, arguments.batch_size, arguments.repeats)
        peak = measure_memory(folder, arguments, frames)
    streamed = measure_stream(recorder, arguments.batch_size, arguments.repeats)
    recorder.close()
    report(
        name="activations",
        **cached,
        unit="GB/s",
        floor=cached["baseline"],
        stream=streamed | {"unit": "frames/s"},
        memory={"positions": frames * recorder.rows_per_frame, "peak": peak, "limit": 2.0, "unit": "GB"},
        sizes={"tap": arguments.tap, "batch_size": arguments.batch_size, "frames_per_block": recorder.frames_per_block},
        machine=machine(device),
    )


if __name__ == "__main__":
    main()
