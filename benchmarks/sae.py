"""Activations a second in the training of a sparse autoencoder (32 channels, 128 latents, activations in memory), for
L1 and TopK at two batch sizes, against dictionary_learning, sae-lens (the extra `peers`) and a plain loop.

Each contestant trains in a process of its own, and they take turns, so that all meet the same machine; peers run in
every combination of bfloat16 autocast and compilation that works, the best of which counts. `ratio` is ours over the
fastest peer, the least of all cases. The loss that each has reached on other activations is reported beside its speed.
`floor` is what the encoder's product alone would take at the speed of a large float32 product: the rest can use
sparsity, and `floor_dense` is for all five products. `trainer_share` is the speed through Lightning's Trainer with
logging and callbacks, as a share of the bare loop's.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.measure import machine, peak_flops, report, require_peers, say, synchronise
from benchmarks.sae_contestants import CHANNELS, LATENTS, PEERS, Case, Trained, make, planted

_ROWS = 2**19
_ROUNDS = 4
_WARM_UP = 30  # steps, in which a contestant compiles


@dataclass
class Entry:
    """A contestant in its process.

    Attributes:
        seconds: of each round.
        loss: at the end.
    """

    name: str
    settings: dict[str, bool]
    pipe: Connection
    process: Any
    seconds: list[float]
    loss: float = float("nan")

    @property
    def title(self) -> str:
        """Name and settings."""
        return title(self.name, self.settings)


def title(name: str, settings: dict[str, bool]) -> str:
    """What a contestant with these settings is called."""
    return " ".join([name, *(key for key, on in settings.items() if on)])


_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def work(
    name: str, settings: dict[str, bool], case: Case, device_name: str, threads: int, clock_name: str, pipe: Connection
) -> None:
    """Be a contestant: train the steps that are asked for, and answer with the seconds they took, or with an error."""
    clock = _CLOCKS[clock_name]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    rows = planted(_ROWS, 1).to(device)

    def batch(index: int) -> torch.Tensor:
        start = index * case.batch_size % (_ROWS - case.batch_size + 1)
        return rows[start : start + case.batch_size]

    try:
        contestant = make(name, settings, case, device)
        if isinstance(contestant, Trained):
            _train_in_turns(contestant, batch, pipe, device, clock)
        else:
            done = 0
            while (steps := pipe.recv()) > 0:
                synchronise(device)
                start = clock()
                for step in range(done, done + steps):
                    contestant.step(batch(step), step)
                done += steps
                synchronise(device)
                pipe.send(clock() - start)
        pipe.send(contestant.final_loss(planted(2**16, 2).to(device)))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0])


def _train_in_turns(
    contestant: Trained, batch: Any, pipe: Connection, device: torch.device, clock: Callable[[], float]
) -> None:
    """The Trainer cannot be stopped between steps: the clock waits in a callback instead."""
    due, start = pipe.recv(), clock()

    def started(index: int) -> None:
        nonlocal due, start
        if index == due:
            synchronise(device)
            pipe.send(clock() - start)
            due += pipe.recv()
            start = clock()

    contestant.fit(batch, started)
    pipe.send(clock() - start)
    assert pipe.recv() == 0


def enter(name: str, settings: dict[str, bool], case: Case, device: torch.device, clock: str) -> Entry | None:
    """Start a contestant and let it warm up; None if it cannot run, which is said."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (name, settings, case, str(device), torch.get_num_threads(), clock, theirs)
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    entry = Entry(name, settings, ours, process, [])
    ours.send(_WARM_UP)
    answer = ours.recv()
    if isinstance(answer, str):
        say(f"  {entry.title}: cannot run ({answer[:100]})")
        process.join()
        return None
    return entry


def measure(case: Case, device: torch.device, peers: bool, rivals: list[str] | None, clock: str) -> dict[str, Any]:
    """Speeds and final losses of all contestants of one case."""
    say(f"{case.kind}, batches of {case.batch_size}, {case.steps} steps")
    wanted: list[tuple[str, dict[str, bool]]] = [("ours", {}), ("trained", {}), ("plain", {})]
    if peers:
        switches = list(product([False, True], repeat=2))
        peers_wanted = [(name, {"autocast": one, "compiled": two}) for name in PEERS for one, two in switches]
        wanted += [one for one in peers_wanted if rivals is None or title(*one) in rivals]
    entries = [entry for name, settings in wanted if (entry := enter(name, settings, case, device, clock))]
    steps = (case.steps - _WARM_UP) // _ROUNDS
    for number in range(_ROUNDS):
        last = number == _ROUNDS - 1
        for entry in entries:
            entry.pipe.send(case.steps - _WARM_UP - steps * (_ROUNDS - 1) if last else steps)
            entry.seconds.append(entry.pipe.recv())
    speeds = {}
    for entry in entries:
        entry.pipe.send(0)
        entry.loss = entry.pipe.recv()
        entry.process.join()
        speeds[entry.title] = (case.steps - _WARM_UP) * case.batch_size / sum(entry.seconds)
        say(f"  {entry.title}: {speeds[entry.title]:,.0f} activations/s, loss {entry.loss:.4f}")
    others = [entry for entry in entries if entry.name in PEERS] or [
        entry for entry in entries if entry.name == "plain"
    ]
    rival = max(others, key=lambda entry: speeds[entry.title])
    ours = entries[0]
    return {
        "kind": case.kind,
        "batch_size": case.batch_size,
        "ours": round(speeds["ours"]),
        "baseline": round(speeds[rival.title]),
        "against": rival.title,
        "ratio": round(speeds["ours"] / speeds[rival.title], 2),
        "ratio_to_plain": round(speeds["ours"] / speeds["plain"], 2),
        "loss_ratio": round(ours.loss / min(entry.loss for entry in [*others, ours]), 4),
        "trainer_share": round(speeds["trained"] / speeds["ours"], 2),
        "all": {entry.title: [round(speeds[entry.title]), round(entry.loss, 4)] for entry in entries},
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--activations", type=int, default=8_000_000, help="of each training")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--kinds", nargs="+", choices=["l1", "topk"], default=["l1", "topk"])
    parser.add_argument("--without_peers", action="store_true", help="compare with the plain loop only")
    parser.add_argument("--rivals", nargs="+", help="peers' settings to run, as 'sae_lens autocast'; all if not given")
    parser.add_argument(
        "--clock", choices=list(_CLOCKS), default="wall", help="processor: for a busy machine, on a CPU with one thread"
    )
    arguments = parser.parse_args()
    if arguments.clock == "processor" and (arguments.device != "cpu" or torch.get_num_threads() > 1):
        parser.error("--clock processor adds up the threads of a process: set --device cpu and OMP_NUM_THREADS=1")
    if not arguments.without_peers:
        require_peers(parser, PEERS, "--without_peers")
    device = torch.device(arguments.device)
    how = (not arguments.without_peers, arguments.rivals, arguments.clock)
    cases = [
        measure(Case(kind, size, arguments.activations // size), device, *how)
        for kind in arguments.kinds
        for size in arguments.batch_sizes
    ]
    worst = min(cases, key=lambda case: case["ratio"])
    floor = peak_flops(device, torch.float32, clock=_CLOCKS[arguments.clock]) / (2 * CHANNELS * LATENTS)
    report(
        name="sae",
        ours=worst["ours"],
        baseline=worst["baseline"],
        ratio=worst["ratio"],
        unit="activations/s",
        floor=round(floor),
        floor_dense=round(floor / 5),
        cases=cases,
        machine=machine(device),
        clock=arguments.clock,
    )


if __name__ == "__main__":
    main()
