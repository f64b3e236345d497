"""Our autoencoders against those of dictionary_learning and SAELens: explained variance at matched sparsity.

    pip install -c constraints.txt -e '.[peers]' && python -m benchmarks.sae_frontier

One cache of activations for each tap; everybody trains 32 -> 128 on the same batches in the same order, for as many
steps; one evaluator, ours, looks at all of them on held-out levels. Each finished autoencoder is a line in
`runs/sae_frontier/points.jsonl`: the same command goes on where it was stopped, and begins anew for another agent, ours
for another of our configurations or other code, a peer's for another version of it. Writes `docs/sae_frontier.csv`,
`.png` and `.md`.
"""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from tqdm import tqdm

from benchmarks.frontier_report import write_report
from benchmarks.frontier_trainers import Coder, Point, Samples, our_code, our_settings, peer_version, train
from benchmarks.measure import machine, report, require_peers, say
from commands import quieten
from datamodules import ActivationDataModule
from lightning_modules.sae_metrics import ExplainedVariance, Sparsity

# ours are many, to be compared with a peer's wherever it lies, and at its L0 rather than between two far from it
PENALTIES: dict[str, list[float]] = {"ours": [0.25, 0.5, 0.8, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0], "peer": [0.5, 1.5, 4.5]}
PLACES: dict[str, list[float]] = {"ours": [0.9, 1, 1.3, 1.6, 1.9, 2, 2.5, 3, 5], "peer": [1, 2, 3, 5]}  # k
LIBRARIES = ["ours", "dictionary_learning", "sae_lens"]
RATES = [1e-2, 3e-2, 1e-1]  # learning rates that everything is trained with
_POSITIONS = 32  # of each validation frame: what everybody is evaluated on
_CHUNK = 16_384


def kinds(library: str) -> list[str]:
    """The kinds of a library that are compared; log is our ReLU configuration's penalty, which nobody else has."""
    return [*(["log", "l1_free"] if library == "ours" else []), "l1", "topk", "batch_topk"]


def sparsities(library: str, kind: str) -> list[float]:
    """The settings of a kind, the middle one first, so that a stopped run shows something of everything."""
    settings = (PLACES if "topk" in kind else PENALTIES)["ours" if library == "ours" else "peer"]
    if kind == "topk":
        settings = [k for k in settings if k == int(k)]
    return sorted(settings, key=lambda value: abs(settings.index(value) - len(settings) // 2))


def held_out(data: ActivationDataModule, tap: str) -> tuple[Shaped[Tensor, "R C"], dict[str, int]]:
    """Random positions of every validation frame, and of how many frames and levels they are."""
    noise, rows, levels = torch.Generator().manual_seed(0), [], []
    for batch in data.val_dataloader():
        maps = batch.activations[tap].flatten(2).movedim(1, 2)
        count = min(_POSITIONS, maps.shape[1])
        chosen = torch.rand(maps.shape[:2], generator=noise).topk(count).indices
        rows.append(maps.gather(1, chosen[:, :, None].expand(-1, -1, maps.shape[2])).flatten(0, 1))
        levels.append(batch.levels)
    seeds = torch.cat(levels)
    return torch.cat(rows), {"frames": len(seeds), "levels": len(seeds.unique())}


@torch.no_grad()
def evaluate(coder: Coder, rows: Shaped[Tensor, "R C"]) -> dict[str, float]:
    """Explained variance about the mean, L0, L1 and the share of latents that are never above 0."""
    variance, sparsity = ExplainedVariance(rows.shape[1:]), None
    for acts in rows.split(_CHUNK):
        latents = coder.encode(acts)
        if sparsity is None:
            sparsity = Sparsity(latents.shape[1])
        sparsity.update(latents)
        variance.update(coder.decode(latents).float(), acts.float())
    assert sparsity is not None
    values = {**variance.compute(), **sparsity.compute()}
    return {name: float(values[name]) for name in ("explained_variance", "l0", "l1", "dead_fraction")}


class Results:
    """The finished points of one agent and one size of data, kept in a file of JSON lines.

    Points of another version of a peer, or from before versions were noted, do not count. Of a peer that is not
    installed now, those of the version that was noted last do.

    Args:
        path: of the file; lines of other agents and sizes stay in it.
        data: what decides the samples: the agent's hash, how many frames.
    """

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self._path, self._data = path, data
        self.records: dict[str, dict[str, Any]] = {}
        self._noted: dict[str, str | None] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line that a kill cut short
                continue
            if record["data"] == data:
                self.records[record["key"]] = record
                self._noted[record["library"]] = record.get("version")

    def version(self, library: str) -> str | None:
        """Of a peer, as its points are looked for; None for ours."""
        return None if library == "ours" else peer_version(library) or self._noted.get(library)

    def key(self, point: Point) -> str:
        """What decides a point's outcome."""
        own = point.library == "ours"
        settings = our_settings(point) | {"code": our_code()} if own else {"version": self.version(point.library)}
        return json.dumps([self._data, point._asdict(), settings], sort_keys=True)

    def add(self, point: Point, values: dict[str, Any]) -> None:
        """Note a finished point."""
        known = {"key": self.key(point), "data": self._data, "version": self.version(point.library)}
        record = {**known, **point._asdict(), **values}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.records[record["key"]] = record


class Frontier:
    """The points of one tap, trained where they are not yet known.

    Args:
        results: where finished points are kept.
        data: with training and validation levels of the tap.
        bar: one step a point.

    Attributes:
        raw_l0: channels above 0 per position.
    """

    def __init__(self, results: Results, data: ActivationDataModule, tap: str, steps: int, bar: "tqdm[Any]") -> None:
        self._results, self._tap, self._steps, self._bar = results, tap, steps, bar
        self._samples = Samples(data, tap)
        self._rows, self._seen = held_out(data, tap)
        self.raw_l0 = (self._rows > 0).sum().item() / len(self._rows)

    def measure(self, point: Point) -> dict[str, Any]:
        """The record of a point."""
        key = self._results.key(point)
        if key not in self._results.records:
            self._bar.set_description(f"{point.tap} {point.library} {point.kind} {point.sparsity:g}")
            start = time.perf_counter()
            coder = train(point, self._samples)
            seconds = time.perf_counter() - start
            self._results.add(point, {**evaluate(coder, self._rows), **self._seen, "seconds": round(seconds, 1)})
        self._bar.update()
        return self._results.records[key]

    def points(self, libraries: list[str], finished_only: bool = False) -> list[dict[str, Any]]:
        """Every setting of some libraries at every learning rate; of those, if asked, what is finished."""
        order = [
            Point(self._tap, library, kind, settings[place], rate, self._steps)
            for place in range(max(map(len, [*PLACES.values(), *PENALTIES.values()])))
            for rate in RATES
            for library in libraries
            for kind in kinds(library)
            if place < len(settings := sparsities(library, kind))
        ]
        if finished_only:
            order = [point for point in order if self._results.key(point) in self._results.records]
        return [self.measure(point) for point in order]


def main() -> None:
    """Train, evaluate, draw and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="pretrained/heist_easy_customcnn_seed0.safetensors")
    parser.add_argument("--taps", nargs="+", default=["conv4a", "conv3a"])
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES, choices=LIBRARIES)
    parser.add_argument("--steps", type=int, default=1_000, help="of 4 096 positions")
    parser.add_argument("--frames", type=int, default=61_440, help="of training, 64 positions each")
    parser.add_argument("--validation_frames", type=int, default=50_000)
    parser.add_argument("--work", type=Path, default=Path("runs/sae_frontier"), help="where finished points are kept")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="where table and plot are written")
    parser.add_argument("--finished_only", action="store_true", help="train nothing, report on what is finished")
    arguments = parser.parse_args()
    if not arguments.finished_only:
        require_peers(parser, [name for name in LIBRARIES[1:] if name in arguments.libraries], "--libraries ours")
    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")  # the peers' imports, and Lightning's advice, would bury the bar
    per_tap = len(RATES) * sum(
        len(sparsities(library, kind)) for library in arguments.libraries for kind in kinds(library)
    )
    records: list[dict[str, Any]] = []
    raw_l0: dict[str, float] = {}
    with tqdm(total=per_tap * len(arguments.taps), unit=" autoencoders", smoothing=0.1) as bar:
        for tap in arguments.taps:
            data = ActivationDataModule(
                arguments.agent, [tap], num_frames=arguments.frames, validation_frames=arguments.validation_frames
            )
            data.prepare_data()
            sizes = {"frames": arguments.frames, "validation_frames": arguments.validation_frames}
            results = Results(arguments.work / "points.jsonl", {"agent": data.agent.weights_hash, **sizes})
            frontier = Frontier(results, data, tap, arguments.steps, bar)
            records += frontier.points(arguments.libraries, arguments.finished_only)
            raw_l0[tap] = frontier.raw_l0
    if not records:
        parser.error("nothing is finished yet: leave --finished_only out")
    compared = write_report(
        records, raw_l0, arguments.output, arguments.agent, RATES, unfinished=per_tap * len(raw_l0) - len(records)
    )
    say(f"written {arguments.output / 'sae_frontier.md'}, .csv and .png")
    margins = [row["ours"] - row["explained_variance"] for row in compared if row["ours"] is not None]
    report(
        name="sae_frontier",
        ours=sum(margin >= 0 for margin in margins),
        baseline=len(margins),
        ratio=round(sum(margin >= 0 for margin in margins) / max(1, len(margins)), 3),
        unit="points of peers' frontiers at which ours of the same kind explain at least as much",
        floor=round(min(margins, default=float("nan")), 5),
        machine=machine(torch.device("cpu")),
    )


if __name__ == "__main__":
    main()
