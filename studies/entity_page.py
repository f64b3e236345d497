"""Pictures and page of the study of entity units."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from environments import EnvironmentSettings, render_states
from interpretability.entity_code import EntityCode
from interpretability.report_page import Section, report_page
from studies.report import Table

_SHOWN = 32  # units of a tap on its figure
_PANELS = 8  # units whose levels are drawn
_COLOURS = {"blue": "#2f7ed8", "green": "#3aa655", "red": "#d7383b", "gem": "#e0b000"}


def draw_pictures(scenes: list[bytes], settings: EnvironmentSettings, names: Sequence[str]) -> Figure:
    """A row a level: each entity in its place, and nothing there."""
    columns = len(names) + 1
    frames = render_states(scenes, settings).reshape(-1, columns, 64, 64, 3)
    figure = Figure(figsize=(1.6 * columns, 1.65 * len(frames) + 0.3), layout="constrained")
    axes = figure.subplots(len(frames), columns, squeeze=False)
    for row, of_level in enumerate(frames):
        for column, frame in enumerate(of_level):
            axes[row, column].imshow(frame, interpolation="nearest")
            axes[row, column].set(xticks=[], yticks=[])
    for axis, name in zip(axes[0], [*names, "nothing"], strict=True):
        axis.set_title(name.replace("_", " "), fontsize=10)
    return figure


def draw_bounds(codes: Mapping[str, Mapping[str, EntityCode]], arms: Mapping[str, str], bound: float) -> Figure:
    """Share of units of all taps that agent and random weights have whose level tells so many entities apart, however
    clearly that is asked for.
    """
    taps = list(codes["random_agent_"])
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    asked = np.linspace(0.5, 0.99, 50)
    told = {
        arm: [np.concatenate([codes[arm][tap].together(low).sum(0) for tap in taps]) for low in asked] for arm in arms
    }
    for axis, count in zip(figure.subplots(1, 3, sharey=True), (1, 2, 3), strict=True):
        for (arm, words), style in zip(arms.items(), ("C0-", "C1--", "k:"), strict=True):
            axis.plot(asked, [100 * (one >= count).mean() for one in told[arm]], style, label=words)
        axis.axvline(bound, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=("respond to any", "tell two apart", "tell three apart")[count - 1], xlabel="bound of the area")
    figure.axes[0].set_ylabel("% of units, all taps")
    figure.axes[-1].legend(fontsize=8, frameon=False)
    return figure


def draw_code(tap: str, code: EntityCode, names: Sequence[str], bound: float) -> Figure:
    """Mean responses of units to entities; a dot where a unit responds, a frame where its level tells which it is.

    The units that separate entities best on tuning levels, in the order of their numbers.
    """
    chosen = np.sort(np.argsort(-code.rank)[:_SHOWN])
    figure = Figure(figsize=(max(0.31 * len(chosen) + 3, 5.5), 3.4), layout="constrained")
    axis = figure.subplots()
    values = code.effect[:, chosen]
    most = max(float(np.abs(values).max()), 1e-9)
    image = axis.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto")
    responds, together = code.responds(bound), code.together(bound)
    for column, unit in enumerate(chosen):
        rows = np.flatnonzero(responds[:, unit])
        axis.plot(np.full(len(rows), column), rows, ".", color="k", markersize=4)
        told = np.flatnonzero(together[:, unit])
        for row in told if len(told) > 1 else ():
            box = Rectangle((column - 0.45, row - 0.45), 0.9, 0.9, fill=False, edgecolor="C1", linewidth=1.6)
            axis.add_patch(box)
    axis.set_xticks(range(len(chosen)), [str(unit) for unit in chosen], fontsize=8, rotation=90 * (len(chosen) > 20))
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axis.set(xlabel="unit", title=f"{tap}: response to an entity less that to nothing")
    figure.colorbar(image, label="sd over levels")
    return figure


def draw_levels(
    responses: Mapping[str, Float[np.ndarray, "L K1 U"]],
    codes: Mapping[str, EntityCode],
    names: Sequence[str],
    bound: float,
) -> Figure:
    """Levels over test levels, by entity, of the units that tell most entities apart; entities in a set in full colour.

    Of those that tell as many, the ones that separate entities best on tuning levels, at most two of a tap.
    """
    together = {tap: code.together(bound) for tap, code in codes.items()}
    ranked: list[tuple[int, float, str, int]] = []
    for tap, code in codes.items():
        told = together[tap].sum(0).tolist()
        ranked += [(told[unit], float(code.rank[unit]), tap, unit) for unit in range(len(told))]
    ranked.sort(reverse=True)
    taps = [tap for _, _, tap, _ in ranked]
    chosen = [one for place, one in enumerate(ranked) if taps[:place].count(one[2]) < 2][:_PANELS]
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axis in panels.flat[len(chosen) :]:
        axis.axis("off")
    labels = [*names, "nothing"]
    for axis, (count, _, tap, unit) in zip(panels.flat, chosen, strict=False):
        values = responses[tap][..., unit]
        drawn = axis.violinplot(values, showextrema=False, widths=0.85)
        for index, body in enumerate(drawn["bodies"]):
            body.set_facecolor(_COLOURS.get(labels[index].split("_")[0], "0.5"))
            body.set_alpha(0.85 if count > 1 and index < len(names) and together[tap][index, unit] else 0.25)
        axis.plot(range(1, len(labels) + 1), np.median(values, 0), "k_", markersize=9)
        axis.set_xticks(
            range(1, len(labels) + 1), [label.replace("_", " ") for label in labels], rotation=90, fontsize=8
        )
        axis.set_title(f"{tap} {unit}: tells {count if count > 1 else 'none'} apart", fontsize=10)
    figure.supylabel("level at the entity's place")
    return figure


def entity_page(
    shares: Table, verdicts: Table, units: Table, figures: Mapping[str, Figure], levels: int, bound: float
) -> str:
    """The page."""
    text = [
        f"In each of {levels} test levels each entity in turn, and then nothing, lies in one place of one random maze; "
        "all else is the same. A unit's response is its highest value there and in the cells around (of taps that fall "
        "below 0 its highest or lowest, whichever told more on validation levels). It responds to an "
        f"entity if its level tells it from nothing: an area under the ROC curve above {bound:g} in its whole 95 % "
        "interval over levels, and a permutation test by level that stands at a false-discovery rate of .05.",
        "Identity: it responds to exactly one entity. Strength 2, strength 3: it responds to at least two (three) "
        "entities, and each two of them are told apart by its level alone, by the same bound, so that how active it is "
        "says which entity it is: multiplexing. Three keys: it tells blue, green and red key so, which differ in "
        "colour only. Explained: any difference between entities, by a permutation test. Guessed: how often one "
        "unit's level gives the entity away, of seven (14 by chance), meaned over units and for the unit that was best "
        "on validation levels. All in per cent, with 95 % intervals (over units; of guesses over levels).",
        "Order, sign and guessing rule were fixed on validation levels. Random weights: filters that were never "
        "trained see colours too, so that a level that differs between colours is no achievement; pixels are the "
        "frame's three colours themselves. Labels shuffled: within each level, all else the same.",
    ]  # fmt: skip
    whole = {str(row[1]): row for row in verdicts.rows if row[0] == "all taps"}
    judged = [
        f"Of all units {whole[name][2]} % {words}, of units with random weights {whole[name][3]} %: "
        f"{whole[name][5]} (Fisher's exact test over units, p = {whole[name][4]:.2g})."
        for name, words in (
            ("strength 2", "tell at least two entities apart by how active they are"),
            ("strength 3", "at least three"),
            ("three keys", "the three keys"),
        )
    ]
    maps = [
        Section(tap, figures=[(f"at most {_SHOWN} units, those that separate entities best", figure)])
        for tap, figure in figures.items()
        if tap not in ("pictures", "bounds", "levels")
    ]
    sections = [
        Section(
            "Does one unit's level code the entity?",
            [
                " ".join(judged),
                "Below, the same for every bound that could have been asked for; the grey line is the one above.",
            ],
            [("units that tell entities apart, by bound", figures["bounds"])],
            verdicts.columns,
            verdicts.rows,
        ),
        Section("Shares of units", columns=shares.columns, rows=shares.rows),
        Section("The pictures", figures=[("each entity in its place, in three levels", figures["pictures"])]),
        Section(
            "Levels of the units that tell most entities apart",
            ["Full colour: entities that are told apart. A dash is the median."],
            [("a unit a panel, named by its tap and its number", figures["levels"])],
            units.columns,
            sorted((row for row in units.rows if row[3]), key=lambda row: -int(row[4])),
        ),
        Section("Units and entities", ["A dot: the unit responds. Framed: its level tells which of these it is."]),
        *maps,
    ]
    return report_page("Which units tell entities apart, and how?", text, sections)
