"""Table, plot and text of `benchmarks.sae_frontier`: each peer's autoencoder beside ours at the same L0."""

import csv
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Record = dict[str, Any]

_TITLES = {"l1": "L1", "l1_free": "L1, free", "topk": "TopK", "batch_topk": "BatchTopK", "log": "log penalty"}
_STYLES = {
    ("ours", False): ("tab:red", "o", "-", "ours"),
    ("ours", True): ("tab:red", "D", ":", "ours, log penalty"),
    ("dictionary_learning", False): ("tab:blue", "s", "--", "dictionary_learning"),
    ("sae_lens", False): ("tab:green", "^", "-.", "SAELens"),
}
_SLACK = 0.05  # of L0, by which a peer's may lie below what ours span
_COLUMNS = [
    "tap", "library", "kind", "sparsity", "learning_rate", "steps", "l0", "explained_variance", "dead_fraction", "l1",
    "frames", "levels",
]  # fmt: skip


def write_report(
    records: list[Record],
    raw_l0: dict[str, float],
    folder: Path,
    agent: str,
    rates: list[float],
    unfinished: int = 0,
) -> list[Record]:
    """Write `sae_frontier.csv`, `.png` and `.md` into a folder.

    Args:
        records: of all libraries.
        raw_l0: channels above 0 per position, by tap.
        folder: made if it is missing.
        agent: path of whose activations these are.
        rates: learning rates that were tried.
        unfinished: records that are still missing.

    Returns:
        The records on the peers' frontiers, each with `ours` and `ours_dead`: explained variance and dead fraction at
        the same L0 on our frontier of the same kind (None below what ours reach), and `best`: the highest explained
        variance on the frontier of any kind of ours there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sae_frontier.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(records)
    compared = compare(records)
    figure = draw(records, raw_l0)
    figure.savefig(folder / "sae_frontier.png", dpi=110)
    pyplot.close(figure)
    (folder / "sae_frontier.md").write_text(describe(records, compared, raw_l0, agent, rates, unfinished))
    return compared


def front(records: list[Record]) -> list[Record]:
    """Of one library, kind and tap those that explain more than every other of no more L0, from low to high L0."""
    found: list[Record] = []
    for record in sorted(records, key=lambda record: (record["l0"], -record["explained_variance"])):
        if not found or record["explained_variance"] > found[-1]["explained_variance"]:
            found.append(record)
    return found


def fronts(records: list[Record], tap: str) -> dict[tuple[str, str], list[Record]]:
    """The front of each library and kind at a tap; L1 is one kind, whether directions are free or not."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["tap"] == tap:
            found.setdefault((record["library"], _kind(record)), []).append(record)
    return {pair: front(of) for pair, of in found.items()}


def compare(records: list[Record]) -> list[Record]:
    """Each record on a peer's front with our fronts at the same L0, see `write_report`."""
    compared = []
    for tap in dict.fromkeys(record["tap"] for record in records):
        found = fronts(records, tap)
        own = {kind: records for (library, kind), records in found.items() if library == "ours"}
        for (library, kind), theirs in found.items():
            for record in theirs if library != "ours" else []:
                ours = [at_l0(others, record["l0"], "explained_variance") for others in own.values()]
                values = {
                    "ours": at_l0(own.get(kind, []), record["l0"], "explained_variance"),
                    "ours_dead": at_l0(own.get(kind, []), record["l0"], "dead_fraction"),
                    "best": max((value for value in ours if value is not None), default=None),
                }
                compared.append(record | values)
    return compared


def at_l0(records: list[Record], l0: float, name: str) -> float | None:
    """A metric of a front, linearly between the two records of nearest L0; above all of them that of the last, which
    has less L0; None below.
    """
    ordered = sorted(records, key=lambda record: record["l0"])
    places = [record["l0"] for record in ordered]
    if not places or l0 < places[0] - _SLACK:
        return None
    return float(np.interp(l0, places, [record[name] for record in ordered]))


def draw(records: list[Record], raw_l0: dict[str, float]) -> Figure:
    """A column for each kind; for each tap unexplained variance over L0, and below it the dead fraction. Lines join
    fronts; what is off them is faint.
    """
    kinds = ["l1", "topk", "batch_topk"]
    figure, axes = pyplot.subplots(
        2 * len(raw_l0), len(kinds), figsize=(12, 5.2 * len(raw_l0)), sharex="col", squeeze=False,
        height_ratios=[2, 1] * len(raw_l0), layout="constrained",
    )  # fmt: skip
    for row, tap in enumerate(raw_l0):
        for column, kind in enumerate(kinds):
            shown = (kind, "log") if kind == "l1" else (kind,)
            chosen = [record for record in records if record["tap"] == tap and _kind(record) in shown]
            _draw_kind(axes[2 * row, column], axes[2 * row + 1, column], chosen, raw_l0[tap])
            axes[2 * row, column].set_title(f"{tap}, {_TITLES[kind]}")
        axes[2 * row, 0].set_ylabel("unexplained variance")
        axes[2 * row + 1, 0].set_ylabel("dead latents")
        axes[2 * row, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("L0 (latents above 0 per position)")
    return figure


def _draw_kind(variance: Axes, dead: Axes, records: list[Record], raw_l0: float) -> None:
    for (library, is_log), (colour, marker, line, label) in _STYLES.items():
        own = [r for r in records if r["library"] == library and (r["kind"] == "log") == is_log]
        best = front(own)
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": line, "label": label, "alpha": 0.85}
        faint = style | {"linestyle": "none", "label": None, "alpha": 0.25, "markersize": 4}
        for chosen, look in ((own, faint), (best, style)):
            places = [record["l0"] for record in chosen]
            variance.plot(places, [max(1e-6, 1 - record["explained_variance"]) for record in chosen], **look)
            dead.plot(places, [record["dead_fraction"] for record in chosen], **look)
    variance.set_yscale("log")
    variance.grid(alpha=0.3, which="both")
    dead.set_ylim(-0.03, 1)
    dead.grid(alpha=0.3)
    for axis in (variance, dead):
        axis.axvline(raw_l0, color="grey", linewidth=1)
    variance.annotate("raw tap", (raw_l0, 1), (2, -10), xycoords=("data", "axes fraction"), textcoords="offset points",
                      color="grey", fontsize=8)  # fmt: skip


def describe(
    records: list[Record],
    compared: list[Record],
    raw_l0: dict[str, float],
    agent: str,
    rates: list[float],
    unfinished: int,
) -> str:
    """The page: how it was measured, where ours are ahead and where behind, and all numbers."""
    first = records[0]
    steps = max(record["steps"] for record in records)
    known = [row for row in compared if row["ours"] is not None]
    ahead = sum(row["ours"] >= row["explained_variance"] for row in known)
    close = sum(0 < row["explained_variance"] - row["ours"] <= 0.001 for row in known)
    spanned = [row for row in compared if row["best"] is not None]
    any_kind = sum(row["best"] >= row["explained_variance"] for row in spanned)
    fewer = sum(row["ours_dead"] <= row["dead_fraction"] for row in known)
    versions = {record["library"]: record.get("version") for record in records}
    peers = [f"{title} {versions[name]}" for (name, _), (*_, title) in _STYLES.items() if versions.get(name)]
    left = f"{unfinished} autoencoders are not trained yet, so many settings lack rates: the same command continues."
    lines = [
        "# Sparse autoencoders against peers, at matched sparsity",
        "",
        f"`python -m benchmarks.sae_frontier` made this page, with {' and '.join(peers) or 'no peer'} "
        "(`pip install -c constraints.txt -e '.[peers]'`).",
        "",
        f"All are 32 -> 128, trained for {steps:,} steps of 4 096 positions of `{agent}`, on the same batches in the "
        f"same order, in float32. All are evaluated by the same code on {first['frames']:,} frames of "
        f"{first['levels']:,} held-out levels (32 random positions of each). Explained variance is about the mean; a "
        "latent is dead if it is never above 0 there.",
        "",
        "- **Settings.** Every setting is trained with learning rates of "
        f"{', '.join(f'{rate:g}' for rate in rates)}, in one schedule for all.",
        "- **Frontier.** What counts of a library is its frontier: the autoencoders that explain more than every other "
        "of their kind that has no more L0, whatever the rate.",
        "- **Ours** run as their configuration in `configs/` says. The log penalty is that of `sae_conv4.yaml`, but "
        "with directions of length 1. Plain L1 is the same without knee and rare frequency, with directions of length "
        "1 or, where the table says free, of any length.",
        "- **Peers** are trained by their own trainers, on inputs of mean 0 and variance 1. Dead latents count over a "
        "million inputs as in ours, so that a peer's revival acts in runs of this length.",
        "",
        "![Unexplained variance and dead latents over L0](sae_frontier.png)",
        "",
        *([left, ""] if unfinished else []),
        f"Of {len(compared)} autoencoders on peers' frontiers {len(known)} have an L0 that ours of the same kind "
        f"reach, or miss by no more than {_SLACK:g}. At that L0 ours, interpolated linearly between two on our "
        f"frontier, explain at least as much in {ahead} (less by no more than 0.001 in {close} others), and have no "
        f"more dead latents in {fewer}. `best` is the highest of any kind of ours, the log penalty of `sae_conv4.yaml` "
        f"included: it explains at least as much in {any_kind} of {len(spanned)}. Differences below 0.001 are within "
        "what another seed changes; there is one seed.",
        "",
        *(f"The raw tap {tap} has {l0:.2f} of its channels above 0 at a position." for tap, l0 in raw_l0.items()),
        "",
        "| tap | peer | kind | setting | rate | L0 | explained variance | ours | difference | best | dead | ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(compared, key=lambda row: (row["tap"], row["kind"], row["l0"])):
        difference = None if row["ours"] is None else row["ours"] - row["explained_variance"]
        cells = [
            row["tap"], row["library"], _TITLES[row["kind"]], f"{row['sparsity']:g}", f"{row['learning_rate']:g}",
            f"{row['l0']:.2f}", _number(row["explained_variance"]), _number(row["ours"]),
            "" if difference is None else f"{difference:+.4f}", _number(row["best"]),
            f"{row['dead_fraction']:.3f}", "" if row["ours_dead"] is None else f"{row['ours_dead']:.3f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Ours:",
        "",
        "| tap | kind | setting | rate | L0 | explained variance | dead |",
        "|---|---|---|---|---|---|---|",
    ]
    own = [
        record
        for tap in dict.fromkeys(record["tap"] for record in records)
        for (library, _), found in fronts(records, tap).items()
        for record in (found if library == "ours" else [])
    ]
    for row in sorted(own, key=lambda row: (row["tap"], row["kind"], row["l0"])):
        lines.append(
            f"| {row['tap']} | {_TITLES[row['kind']]} | {row['sparsity']:g} | {row['learning_rate']:g} | "
            f"{row['l0']:.2f} | {_number(row['explained_variance'])} | {row['dead_fraction']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def _kind(record: Record) -> str:
    return "l1" if record["kind"] == "l1_free" else record["kind"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
