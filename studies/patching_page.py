"""How patching is shown: bars of what sets of positions recover, maps of single positions, and the page."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from interpretability.report_page import Section, report_page
from interpretability.statistics import spreads
from studies.patching_mazes import SETS, Pair
from studies.patching_moves import Moved
from studies.report import Table

_TITLES = {
    "frame": "as it lies in the frame",
    "preferred": "from the preferred entity",
    "other": "from the other entity",
    "player": "from the player",
}
_ESTIMATES = {"gradient": "gradient at the frame that is run", "path": "mean gradient along the way"}
_EXAMPLES = 4
_UNITS = 12


def draw_sets(taps: Sequence[str], summary: Mapping[str, float]) -> Figure:
    """What each set recovers at each tap, with its interval; the controls as marks."""
    figure = Figure(figsize=(13, 1.2 + 0.27 * len(SETS) * -(-len(taps) // 4) * 1.25), layout="constrained")
    columns = min(4, len(taps))
    panels = figure.subplots(-(-len(taps) // columns), columns, squeeze=False, sharey=True, sharex=True)
    for axes in panels.flat[len(taps) :]:
        axes.axis("off")
    marks = {"": ("o", "C0", "exchanged maze"), "_unrelated": ("x", "C1", "another maze"),
             "_irrelevant": ("+", "C2", "a lock moved"), "_random_agent": (".", "0.6", "random weights")}  # fmt: skip
    for axes, tap in zip(panels.flat, taps, strict=False):
        for ending, (mark, colour, title) in marks.items():
            for row, name in enumerate(SETS):
                key = f"patching/{tap}/{'recovered' if name == 'all' else name}{ending}"
                if np.isfinite(summary.get(key, np.nan)):
                    low, high = summary[f"{key}_low"], summary[f"{key}_high"]
                    axes.plot([low, high], [row, row], color=colour, linewidth=2, alpha=0.5)
                    axes.plot(summary[key], row, mark, color=colour, label=title if row == 0 else None)
        axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.axvline(1, color="0.8", linewidth=0.8, zorder=0)
        axes.set_title(tap, fontsize=10)
        axes.set_xlim(-0.5, 1.25)
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.set_xlabel("recovered", fontsize=8)
        axes.grid(axis="x", alpha=0.2)
    panels[0, 0].set_yticks(range(len(SETS)), list(SETS.values()))
    panels[0, 0].invert_yaxis()
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Share of the difference recovered by patching a set of positions")
    return figure


def draw_units(taps: Sequence[str], units: Table) -> Figure:
    """What the channels that recover most on validation levels recover, and the highest of random weights."""
    columns = min(4, len(taps))
    rows = -(-len(taps) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.5, 2.3 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in panels.flat[len(taps) :]:
        axes.axis("off")
    for axes, tap in zip(panels.flat, taps, strict=False):
        of = [row for row in units.rows if row[0] == tap]
        shown, chance = of[:_UNITS], sorted((float(row[6]) for row in of), reverse=True)[:_UNITS]
        values = np.array([[float(cell) for cell in row[3:6]] for row in shown])
        axes.errorbar(range(len(shown)), values[:, 0], yerr=spreads(values), fmt="o", markersize=4, label="agent")
        axes.plot(range(len(chance)), chance, ".", color="0.6", label="random weights, highest first")
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xticks(range(len(shown)), [str(row[1]) for row in shown], fontsize=8, rotation=90)
        axes.set_title(tap, fontsize=10)
        axes.set_xlabel("channel", fontsize=9)
    for row in panels:
        row[0].set_ylabel("recovered by one channel", fontsize=9)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_estimates(taps: Sequence[str], units: Table) -> Figure:
    """What each channel recovers, measured and as estimated by gradients."""
    columns = min(4, len(taps))
    rows = -(-len(taps) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.5, 2.7 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(taps) :]:
        axes.axis("off")
    for axes, tap in zip(panels.flat, taps, strict=False):
        of = [row for row in units.rows if row[0] == tap]
        measured = np.array([float(row[3]) for row in of])
        for number, (how, title) in enumerate(_ESTIMATES.items()):
            guessed = np.array([float(row[units.columns.index(how)]) for row in of])
            axes.plot(measured, guessed, "ox"[number], color=f"C{number}", markersize=5, alpha=0.7, label=title)
        ends = (min(0.0, measured.min()), max(measured.max(), 0.01))
        axes.plot(ends, ends, color="0.7", linewidth=0.8, zorder=0)
        axes.set_title(tap, fontsize=10)
        axes.tick_params(labelsize=8)
    for row in panels:
        row[0].set_ylabel("as estimated", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("recovered by one channel", fontsize=9)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_maps(maps: Mapping[str, Mapping[str, Float[np.ndarray, "rows columns"]]]) -> Figure:
    """What single blocks of positions recover, a row for each tap, a column for each place to count from."""
    figure = Figure(figsize=(12.5, 3.0 * len(maps)), layout="constrained")
    panels = figure.subplots(len(maps), len(_TITLES), squeeze=False)
    for number, (tap, views) in enumerate(maps.items()):
        row = panels[number]
        full = max(float(np.nanmax(np.abs(view))) for view in views.values())
        for axes, (reference, title) in zip(row, _TITLES.items(), strict=True):
            view = views[reference]
            extent = None
            if reference != "frame":
                view = _cropped(view)
                height, width = view.shape
                extent = (-width / 2, width / 2, height / 2, -height / 2)
                axes.plot(0, 0, "k+", markersize=9, markeredgewidth=1)
            image = axes.imshow(view, cmap="RdBu_r", vmin=-full, vmax=full, extent=extent)
            axes.set_facecolor("0.93")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(title if number == 0 else "", fontsize=10)
        row[0].set_ylabel(tap, fontsize=11)
        figure.colorbar(image, ax=list(row), shrink=0.85, label="recovered by one block")
    return figure


def _cropped(view: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "some fewer"]:
    """Without what no block reaches, the middle in the middle."""
    middle = np.array(view.shape) // 2
    reach = np.abs(np.argwhere(np.isfinite(view)) - middle).max()
    top, left = middle - np.minimum(reach, middle)
    return view[top : view.shape[0] - top, left : view.shape[1] - left]


def draw_examples(pairs: Sequence[Pair], found: Mapping[str, Moved]) -> Figure:
    """The mazes with the largest differences: both frames, and over the first what each block of it recovers."""
    sizes = next(iter(found.values())).whole.sum(1)
    chosen = np.argsort(-sizes)[:_EXAMPLES]
    figure = Figure(figsize=(2.05 * (2 + len(found)), 2.25 * len(chosen)), layout="constrained")
    panels = figure.subplots(len(chosen), 2 + len(found), squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for place, number in enumerate(chosen.tolist()):
        row, pair = panels[place], pairs[number]
        for axes, frame, title in zip(row, pair.frames, ("the maze", "exchanged"), strict=False):
            axes.imshow(frame.numpy(), extent=(0, 1, 0, 1))
            axes.set_title(title if place == 0 else "", fontsize=9)
        for axes, (tap, moved) in zip(row[2:], found.items(), strict=True):
            heat = moved.blocks[number, 0] / moved.whole[number, 0]
            full = max(float(np.abs(heat).max()), 1e-9)
            grey = pair.frames[0].float().mean(2).numpy()
            axes.imshow(grey, cmap="gray", extent=(0, 1, 0, 1))
            axes.imshow(
                heat, cmap="RdBu_r", vmin=-full, vmax=full, extent=(0, 1, 0, 1), alpha=np.abs(heat) / full * 0.85
            )
            axes.set_title(f"{tap}\nup to {full:.2f}" if place == 0 else f"up to {full:.2f}", fontsize=9)
    return figure


def patching_page(
    agent: str, summary: Mapping[str, float], tables: Mapping[str, Table], figures: Mapping[str, Figure]
) -> str:
    """The page of the study."""
    text = [
        f"Agent {agent}. Two entities can be fetched at once, in different directions. The agent is run on the maze, "
        "but a part of its activation comes from the same maze with the two entities exchanged. Recovered is the share "
        "of the difference between the two frames (log-probability of the actions towards the one place less that of "
        "those towards the other) that this part carries over: 1 is all of it, 0 nothing.",
        f"Over {summary['patching/levels']:.0f} test levels the exchange changes it by "
        f"{summary['patching/difference']:.2f} nats ({summary['patching/difference_low']:.2f} to "
        f"{summary['patching/difference_high']:.2f}; with random weights "
        f"{summary['patching/random_agent_difference']:.3f}), and the choice follows the preferred entity in "
        f"{100 * summary['patching/follows']:.0f} % ({100 * summary['patching/follows_low']:.0f} to "
        f"{100 * summary['patching/follows_high']:.0f}) of the mazes. Levels weigh by the size of their difference.",
    ]
    sets = [
        "Where the layers read nothing but the layer before, the whole tap recovers 1 by construction. Controls: the "
        "same positions from another maze of the same two entities (what any disturbance does: whatever makes the "
        "agent indifferent recovers .5), from the same maze with a lock moved aside, and the same patch in an agent "
        "with random weights. Lines are 95 % intervals over levels.",
    ]
    positions = [
        "Red blocks carry the agent over to the choice of the patched frame, blue ones the other way. Where the map "
        "has more than 16 positions a side, a block is several of them. The cross is the middle of the entity's or "
        "the player's cell in the frame that is run; blocks that less than half of the frames have are grey.",
    ]
    examples = ["The mazes with the largest difference, each map in its own scale."]
    best = tables["best"]
    parts = [
        Section("What carries the choice", sets, [("recovered by sets of positions", figures["sets"])],
                best.columns, best.rows),
    ]  # fmt: skip
    if "positions" in figures:
        parts.append(
            Section("Single positions, mean over levels", positions, [("maps of positions", figures["positions"])],
                    tables["positions"].columns, tables["positions"].rows)
        )  # fmt: skip
        parts.append(
            Section(
                "Single positions in some mazes",
                examples,
                [
                    (
                        "the maze, the maze with its two entities exchanged, and what each block of a tap carries over",
                        figures["examples"],
                    )
                ],
            )
        )
    if "units" in tables:
        words = [
            "Single channels patched at all positions, in the order of what they recover on validation levels, and "
            "measured on test levels. Grey: the channels of an agent with random weights that recover most.",
        ]
        pictures = [("recovered by channels", figures["units"])]
        parts.append(Section("Channels", words, pictures, tables["units"].columns, tables["units"].rows[:20]))
    if tables["estimates"].rows:
        words = [
            "What a patch moves can be estimated without running it: the change of the activation times the gradient "
            "of the choice, summed over the patch (attribution patching), or with the mean gradient along the straight "
            "way between both activations. The table has the correlation of estimate and measurement over all single "
            "blocks and channels. Where it is low, only measured patches count.",
        ]
        drawn = [("measured and estimated", figures["estimates"])] if "estimates" in figures else []
        parts.append(Section("By gradients", words, drawn, tables["estimates"].columns, tables["estimates"].rows))
    parts.append(Section("All sets", columns=tables["sets"].columns, rows=tables["sets"].rows))
    return report_page("What carries the choice of where to go", text, parts)
