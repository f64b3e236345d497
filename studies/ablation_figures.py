"""How ablations are shown: effects of single units, choices after each, synergy of pairs, groups, the page."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from environments.heist import ENTITIES
from interpretability.choices import NOTHING
from interpretability.report_page import Section, film_links, report_page
from interpretability.statistics import Interval, spreads
from studies.ablation_trials import Outcomes
from studies.bars import grouped_bars
from studies.report import Table
from studies.retargeting_search import ASKED

TOUCHED = (*ASKED, "nothing")


def touched_shares(outcomes: Outcomes) -> np.ndarray:
    """Share of mazes in which each of `TOUCHED` is touched first, [T 5]."""
    codes = [ENTITIES.index(name) if name in ENTITIES else NOTHING for name in TOUCHED]
    return np.stack([(outcomes.touched == code).mean(1) for code in codes], axis=1)


def draw_units(
    effects: Mapping[str, Mapping[str, Sequence[Interval]]], order: Sequence[int], floors: Mapping[str, float], tap: str
) -> Figure:
    """Bars with intervals: a row for each kind of ablation, a column for each effect, units in a given order.

    Args:
        effects: by kind, then by the effect's name, one interval a unit.
        order: of units.
        floors: by the effect's name, a line to hold the bars against.
        tap: in the title.
    """
    names = list(next(iter(effects.values())))
    wide = max(5.0, 0.17 * len(order) + 1)
    figure = Figure(figsize=(wide * len(names), 2.5 * len(effects) + 0.8), layout="constrained")
    panels = figure.subplots(len(effects), len(names), squeeze=False, sharey="col", sharex=True)
    place = np.arange(len(order))
    for row, (kind, of) in enumerate(effects.items()):
        for column, name in enumerate(names):
            axis = panels[row, column]
            values = np.array([of[name][unit] for unit in order])
            axis.bar(place, values[:, 0], yerr=spreads(values), capsize=1.5, error_kw={"linewidth": 0.8})
            axis.axhline(0, color="black", linewidth=0.6)
            if name in floors:
                axis.axhline(floors[name], color="C1", linewidth=1, label="no ablation, other noise")
            axis.set_ylabel(name, fontsize=9)
            axis.set_title(f"{kind} ablation", fontsize=9)
            axis.set_xlim(-0.7, len(order) - 0.3)
    for axis in panels[-1]:
        axis.set_xticks(place, [str(unit) for unit in order], fontsize=6, rotation=90)
        axis.set_xlabel(f"unit of {tap}, by its effect on validation mazes")
    if floors:
        panels[0, 0].legend(loc="upper right", fontsize=8)
    return figure


def draw_choices(shares: np.ndarray, clean: np.ndarray, order: Sequence[int], title: str) -> Figure:
    """How taking each unit away changes the share of mazes in which each entity is touched first."""
    change = 100 * (shares - clean)[list(order)].T
    limit = max(5.0, float(np.abs(change).max()))
    figure = Figure(figsize=(max(6.0, 0.22 * len(order) + 2.6), 2.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(order)), [str(unit) for unit in order], fontsize=7, rotation=90)
    axis.set_yticks(range(len(TOUCHED)), [name.replace("_", " ") for name in TOUCHED])
    axis.set(xlabel="unit", title=title)
    axis.title.set_fontsize(10)
    figure.colorbar(image, label="points of % touched first")
    return figure


def draw_pairs(synergy: Mapping[str, Mapping[tuple[int, int], Interval]], units: Sequence[int], title: str) -> Figure:
    """A heat map for each effect; a framed cell's interval leaves 0 out."""
    side = max(3.6, 0.62 * len(units) + 1)
    figure = Figure(figsize=((side + 1.4) * len(synergy), side + 0.4), layout="constrained")
    for axis, (name, pairs) in zip(figure.subplots(1, len(synergy), squeeze=False)[0], synergy.items(), strict=True):
        values = np.full((len(units), len(units)), np.nan)
        limit = max(1e-3, *(abs(interval.value) for interval in pairs.values()))
        for (one, other), interval in pairs.items():
            a, b = sorted((units.index(one), units.index(other)))
            values[b, a] = interval.value
            sure = interval.low > 0 or interval.high < 0
            axis.text(
                a, b, f"{interval.value:+.2f}", ha="center", va="center", fontsize=8,
                fontweight="bold" if sure else "normal",
                color="white" if abs(interval.value) > 0.6 * limit else "black",
            )  # fmt: skip
            if sure:
                x, y = np.array([-0.48, 0.48, 0.48, -0.48, -0.48]), np.array([-0.48, -0.48, 0.48, 0.48, -0.48])
                axis.plot(a + x, b + y, color="black", linewidth=1.2)
        image = axis.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_xticks(range(len(units)), [str(unit) for unit in units])
        axis.set_yticks(range(len(units)), [str(unit) for unit in units])
        axis.set(xlabel="unit", ylabel="unit", title=name)
        axis.title.set_fontsize(9)
        for edge in ("top", "right"):
            axis.spines[edge].set_visible(False)
        figure.colorbar(image, ax=axis, label=name, shrink=0.8)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_groups(effects: Mapping[str, Mapping[str, Sequence[Interval]]], names: Sequence[str], title: str) -> Figure:
    """Each group beside the mean of random sets of its size, for each effect."""
    figure = Figure(figsize=(max(4.5, 0.8 * len(names) + 1) * len(effects), 3.8), layout="constrained")
    for axis, (effect, of) in zip(figure.subplots(1, len(effects), squeeze=False)[0], effects.items(), strict=True):
        grouped_bars(axis, names, of)
        axis.tick_params("x", labelsize=8)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_ylabel(effect, fontsize=9)
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def ablation_page(
    told: Sequence[str], tables: Mapping[str, Table], figures: Mapping[str, Figure], films: Sequence[str] = ()
) -> str:
    """The page of the study; `films` are names."""
    headings = {
        "units": (
            "One unit at a time",
            "Another choice: share of mazes in which another entity, or nothing, is touched first than by the agent "
            "that is left alone, with the same noise. Return lost: its return on natural levels less the ablated "
            "one's. The orange line is what other noise alone does to the choice.",
        ),
        "choices": ("What is touched first", "With one unit taken away, less the share of the agent left alone."),
        "pairs": (
            "Pairs",
            "Synergy: the effect of taking both away less the sum of their single effects. Framed where the interval "
            "leaves 0 out (of so many pairs one in twenty does by chance). A share cannot rise above 1: of two units "
            "that each change most choices, negative synergy says little.",
        ),
        "groups": (
            "Groups of co-active units",
            "Each beside the mean over random sets of as many other units.",
        ),
    }
    sections = [
        Section(heading, [words], [(heading, figures[name])] if name in figures else [], tables[name].columns,
                tables[name].rows)
        for name, (heading, words) in headings.items() if name in tables
    ]  # fmt: skip
    if films:
        words = "The first test mazes in which the unit that changed most on validation mazes changes the choice, "
        words += "played again in other company."
        sections.append(Section("Films", [words], films=film_links(films)))
    return report_page("What is lost without a unit", list(told), sections)
