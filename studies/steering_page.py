"""How steering is shown: success against strength, and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interpretability.perception import SEEN
from interpretability.report_page import Section, film_links, report_page
from interpretability.statistics import Interval
from studies.report import Cell, Table


class Method(NamedTuple):
    """A way to steer."""

    tap: str
    source: str
    operation: str

    @property
    def key(self) -> str:
        """In metric names."""
        return f"{self.tap}/{self.source}_{self.operation}"


@dataclass(frozen=True)
class Dose:
    """Success of one method for one entity at each strength, on tuning mazes.

    Attributes:
        strengths: tried.
        shares: touched as asked.
        best: number of the chosen strength.
    """

    strengths: tuple[float, ...]
    shares: list[Interval]
    best: int


def draw_doses(doses: Mapping[tuple[Method, str], Dose], summary: Mapping[str, float]) -> Figure:
    """By method and entity: lines on tuning mazes, and beside them the chosen strength on test mazes."""
    sources = list(dict.fromkeys((method.tap, method.source) for method, _ in doses))
    entities = [entity for entity in SEEN if any(of == entity for _, of in doses)]
    operations = list(dict.fromkeys(method.operation for method, _ in doses))
    rows, columns = max(len(entities), 1), max(len(sources), 1)
    figure = Figure(figsize=(max(2.9 * columns + 1.2, 5.4), 2.3 * rows + 1.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for down, entity in enumerate(entities):
        for right, (tap, source) in enumerate(sources):
            axes = panels[down, right]
            _draw_panel(axes, {name: doses.get((Method(tap, source, name), entity)) for name in operations},
                        f"steering/{tap}/{source}", entity, summary)  # fmt: skip
            if down == 0:
                axes.set_title(f"{tap}, {source}", fontsize=10)
            if right == 0:
                counted = summary.get(f"steering/{entity}/counted", 0)
                axes.set_ylabel(f"{entity.replace('_', ' ')}, % as asked\n({counted:.0f} test mazes)", fontsize=9)
            if down == rows - 1:
                axes.set_xlabel("strength", fontsize=9)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    title = "Lines: tuning mazes, the chosen strength framed.\nRight of the line: test mazes, 95 % intervals"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_panel(
    axes: Axes, doses: Mapping[str, Dose | None], prefix: str, entity: str, summary: Mapping[str, float]
) -> None:
    known = [dose for dose in doses.values() if dose is not None]
    if not known:
        return
    ticks = np.arange(len(known[0].strengths))
    for number, (name, dose) in enumerate(doses.items()):
        if dose is None:
            continue
        colour = f"C{number}"
        values = [100 * share.value for share in dose.shares]
        axes.plot(ticks, values, "o-", color=colour, markersize=3, linewidth=1.2, label=name)
        axes.plot(dose.best, values[dose.best], "s", color=colour, markersize=8, fillstyle="none")
        place = len(ticks) + 0.1 + 0.45 * number
        for arm, mark, shade in (("success", "o", colour), ("random_direction", "x", "0.5"),
                                 ("random_agent", "+", "0.5")):  # fmt: skip
            key = f"{prefix}_{name}/{entity}/{arm}"
            if key in summary:
                label = None if arm == "success" or number else arm.replace("_", " ")
                axes.plot([place] * 2, [100 * summary[f"{key}_low"], 100 * summary[f"{key}_high"]], color=shade,
                          linewidth=1.2, alpha=0.6)  # fmt: skip
                axes.plot(place, 100 * summary[key], mark, color=shade, markersize=5, label=label)
    axes.axvline(len(ticks) - 0.4, color="0.7", linewidth=0.8)
    if (none := summary.get(f"steering/{entity}/none")) is not None:
        axes.axhline(100 * none, color="0.4", linewidth=0.8, linestyle=":", label="no edit, other noise")
    axes.set_xticks([*ticks, len(ticks) + 0.8], [*(f"{strength:g}" for strength in known[0].strengths), "test"])
    axes.set_ylim(-3, 103)
    axes.grid(axis="y", alpha=0.2)


def steering_page(
    agent: str,
    summary: Mapping[str, float],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    films: Sequence[str] = (),
) -> str:
    """The page of the study; `films` are names."""
    text = [
        f"Agent {agent}. In each maze two of the keys and the gem can be fetched at once, in different directions. An "
        "edit adds directions of a tap to its activation, and is fixed by the name of the asked entity; it counts only "
        "where the unedited agent, with the same noise, touches the other one first. Touching nothing in time is a "
        "failure.",
        f"The strength of each was chosen on mazes of validation levels; what is reported was played once, on "
        f"{summary['steering/levels']:.0f} mazes of test levels.",
    ]
    methods = [
        "Add: the asked entity's direction everywhere. Raise: where the entity is read. Remove: the others' where they "
        "are read, taken away. Swap: the asked one and the one that the unedited agent prefers exchanged, where each "
        "is read. Directions: of a linear probe, differences of means, the best latent of an autoencoder, or "
        "eigenfilters of a bilinear layer.",
        "Random direction: as large a change at every position in one random direction. Random agent's: the same edit "
        "with directions of the same length found in an agent with random weights. No edit: the unedited agent with "
        "other noise. KL and same action: against the unedited agent on natural play, where nobody asked for anything.",
    ]
    sections = [
        Section("The method that was best on validation levels", (), (), tables["best"].columns, tables["best"].rows),
        Section("Success against strength", methods, [("success against strength", figures["doses"])]),
        Section("All methods on test levels", columns=tables["methods"].columns, rows=tables["methods"].rows),
        Section("All strengths on validation levels", columns=tables["doses"].columns, rows=tables["doses"].rows),
    ]
    if films:
        words = ["The first counted test mazes of each entity, without an edit and with the best method's."]
        sections.append(Section("Films", words, films=film_links(films)))
    return report_page("Steered along directions", text, sections)


def steering_tables(
    doses: Mapping[tuple[Method, str], Dose], best: Mapping[str, Method], summary: Mapping[str, float]
) -> dict[str, Table]:
    """The best methods, all of them, and all strengths."""
    rows: list[list[Cell]] = []
    tried: list[list[Cell]] = []
    for (method, entity), dose in doses.items():
        tried += [
            [entity, *method, strength, *share, "chosen" if number == dose.best else ""]
            for number, (strength, share) in enumerate(zip(dose.strengths, dose.shares, strict=True))
        ]
        key = f"steering/{method.key}/{entity}"
        if f"{key}/success" in summary:
            row: list[Cell] = [entity, *method, summary[f"{key}/strength"], int(summary[f"steering/{entity}/counted"])]
            arms = [f"{key}/{arm}" for arm in ("success", "random_direction", "random_agent")]
            for name in (*arms, f"steering/{entity}/none", f"{key}/kl", f"{key}/action_agreement"):
                row += [summary[f"{name}{ending}"] for ending in ("", "_low", "_high")]
            rows.append([*row, summary[f"{key}/norm"]])
    what = ["entity", "tap", "directions", "operation", "strength"]
    columns = [*what, "mazes", "touched as asked", "low", "high", "random direction", "low", "high",
               "random agent's", "low", "high", "no edit", "low", "high", "KL", "low", "high", "same action", "low",
               "high", "norm"]  # fmt: skip
    order = {entity: number for number, entity in enumerate(SEEN)}
    rows.sort(key=lambda row: (order[str(row[0])], -float(row[6])))
    top = [row for row in rows if tuple(row[1:4]) == tuple(best.get(str(row[0]), ()))]
    return {
        "best": Table(columns, top),
        "methods": Table(columns, rows, printed=False),
        "doses": Table([*what, "validation: touched as asked", "low", "high", ""], tried, printed=False),
    }
