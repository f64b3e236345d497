"""Pictures and page of the study of directional units."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from environments import EnvironmentSettings, render_states
from environments.heist import AXES, DIRECTION_STEPS, DIRECTIONS, QUADRANTS
from interpretability.directions import TapScores
from interpretability.report_page import Section, report_page
from studies.report import Table

_SHOWN = 24  # units
_ARROWS = {"left": "←", "down": "↓", "up": "↑", "right": "→"}


def scene_names() -> list[str]:
    """Arrows of the way in each quadrant and axis: its first step, and then the second."""
    names = []
    for x, y in QUADRANTS:
        steps = [DIRECTIONS[DIRECTION_STEPS.index(step)] for step in ((x, 0), (0, y))]
        names += ["".join(_ARROWS[step] for step in order) for order in (steps, steps[::-1])]
    return names


def draw_scenes(scenes: list[bytes], settings: EnvironmentSettings) -> Figure:
    """Corners and detours of one level: a column a way, a row a kind of maze, two ways to one key side by side."""
    frames = render_states(scenes, settings).reshape(2, len(QUADRANTS) * len(AXES), len(AXES), 64, 64, 3)
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(2, frames.shape[1])
    for row, maze in enumerate(("corner", "detour")):
        for column, name in enumerate(scene_names()):
            axis = axes[row, column]
            axis.imshow(frames[row, column, column // 2 % 2], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(name, fontsize=14)
        axes[row, 0].set_ylabel(maze)
    return figure


def draw_selectivity(trained: Mapping[str, TapScores], drawn: Mapping[str, TapScores], least: float) -> Figure:
    """Each unit's selectivity for the first step against that for the side of the key, each at its own best direction.

    Random weights in grey.
    """
    columns = min(len(trained), 5)
    rows = -(-len(trained) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 5), 3 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in panels.flat[len(trained) :]:
        axis.axis("off")
    for axis, tap in zip(panels.flat, trained, strict=False):
        for scores, colour, words in ((drawn.get(tap), "0.6", "random weights"), (trained[tap], "C0", "agent")):
            if scores is not None:
                across = scores.corner["key_side"].effect.max(0)
                both = np.minimum(scores.corner["first_step"].effect, scores.detour["first_step"].effect).max(0)
                axis.scatter(across, both, s=14, color=colour, alpha=0.6, linewidths=0, label=words)
                found = scores.directional.any(0)
                axis.scatter(across[found], both[found], s=34, facecolors="none", edgecolors="C3", linewidths=0.9)
        axis.axhline(least, color="0.8", linewidth=0.8, zorder=0)
        axis.axvline(least, color="0.8", linewidth=0.8, zorder=0)
        axis.set_title(tap)
    panels[0, 0].legend(fontsize=8, frameon=False)
    figure.supxlabel("tells the side on which the key lies (sd)")
    figure.supylabel("tells the first step (sd)")
    return figure


def draw_units(scores: Mapping[str, TapScores]) -> Figure:
    """Mean response of the units of the clearest first step in all scenes, those of one first step side by side."""
    ranked: list[tuple[float, str, int, int]] = []
    for tap, found in scores.items():
        both = np.minimum(found.corner["first_step"].effect, found.detour["first_step"].effect)
        best = both.argmax(0)
        ranked += [(float(both[d, unit]), tap, unit, d) for unit, d in enumerate(best.tolist())]
    top = sorted(sorted(ranked, reverse=True)[:_SHOWN], key=lambda one: (one[3], -one[0]))
    names = scene_names()
    order = sorted(range(len(names)), key=lambda n: list(_ARROWS.values()).index(names[n][0]))
    values = np.array([scores[tap].profile[..., unit].reshape(2, -1)[:, order].ravel() for _, tap, unit, _ in top])
    bound = float(np.abs(values).max()) or 1.0
    figure = Figure(figsize=(10, 0.3 * len(top) + 1.8), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axis.set_xticks(range(2 * len(order)), [names[n] for n in order] * 2, fontsize=12)
    labels = []
    for _, tap, unit, d in top:
        star = " *" if scores[tap].directional[d, unit] else ""
        labels.append(f"{tap} {unit}: {DIRECTIONS[d]}{star}")
    axis.set_yticks(range(len(top)), labels)
    for line in range(1, 8):
        axis.axvline(2 * line - 0.5, color="k" if line == 4 else "0.6", linewidth=2.0 if line == 4 else 0.6)
    axis.set_title("corners (left half) and detours (right half), by the way: first step, then second", fontsize=10)
    figure.colorbar(image, label="mean response (sd)", shrink=0.8)
    return figure


def directional_page(
    shares: Table, competence: Table, units: Table, figures: Mapping[str, Figure], levels: int, least: float
) -> str:
    """The page."""
    text = [
        f"In each of {levels} test levels a key lies round a corner, in four orientations and their mirror images. Two "
        "ways lead to the same key, one of which starts along its row and one along its column, while player, key, "
        "lock and gem stay in their cells. A unit tells the first step if it responds more where the way starts in "
        "its direction than in the same picture where it starts along the other axis, for both places of the key that "
        "such a way leads to. A unit that merely sees the key, the gem or one shape of corner does not.",
        "What such a unit may still see is the open floor next to the player. So in detours both ways are open there, "
        "and one cell further on is closed on one of them. A unit counts as directional if it tells the first step in "
        "corners and in detours. Key side: units that tell on which side the key lies, the way starting across. Plain: "
        "what a comparison of mean responses calls directional without matched pictures; it takes the place of key "
        "and gem for a direction.",
        f"To pass, the mean has to differ by {least:g} standard deviations of a single response over levels, for "
        "the weaker of the two places, and in a permutation test in which the labels of whole levels are exchanged, at "
        "a false-discovery rate of .05 over the units and directions of a tap. Random weights: an agent of the same "
        "architecture that was never trained. Labels exchanged: first step, with labels exchanged in a random half of "
        "the levels. In brackets Wilson's 95 % interval over units, like the shares in per cent.",
    ]
    clear = sorted((row for row in units.rows if row[-1]), key=lambda row: -min(float(row[3]), float(row[7])))
    sections = [
        Section("Shares of units", columns=shares.columns, rows=shares.rows),
        Section(
            "Does the agent know its way here?",
            ["Share of scenes in which its expected move points along the first step more than along any other; of "
             "four directions one is right by chance in a quarter."],
            columns=competence.columns, rows=competence.rows,
        ),
        Section("The scenes", figures=[("corners and detours of one level", figures["scenes"])]),
        Section(
            "First step or key?",
            ["Each dot is a unit: how clearly it tells the first step, in the weaker of corner and detour, against "
             "how clearly it tells the side of the key; ringed if directional. Grey lines: what it takes."],
            [("in standard deviations (sd) of a single response over levels", figures["selectivity"])],
        ),
        Section("The clearest units",
                ["Mean response in every scene, in standard deviations over scenes. A star marks units that pass."],
                [("a row a unit, named by its tap, its number and the first step that it tells", figures["units"])],
                units.columns, clear[:_SHOWN] or units.rows[:0]),
    ]  # fmt: skip
    return report_page("Which units say where the way starts?", text, sections)
