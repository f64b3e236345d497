"""How the spatial intervention is shown: the scan, the map of where the agent ends, a film, the page."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from environments import EnvironmentSettings, render_states
from environments.heist.layout import Cell
from interpretability.choices import retrace
from interpretability.films import Film, film_of_replays
from interpretability.replay import Replay
from interpretability.report_page import Section, film_links, report_page
from interpretability.statistics import Interval, spreads
from interpretability.visits import Visits
from studies.bars import grouped_bars
from studies.report import Table
from studies.spatial_scenes import Scene
from studies.spatial_trials import ARMS, EndMap

_PINK = (255, 45, 120)

_SHOWN = {
    "arms": "How many come to the place, by arm, on test levels.",
    "ends": "Where episodes end that start at several places.",
    "scan": "Every unit on validation levels; grey: the interval without an edit.",
}


def draw_scan(
    shares: Sequence[Interval], none: Interval, random_agent: Sequence[Interval], chosen: Sequence[int], title: str
) -> Figure:
    """Every unit's share of scenes in which the agent came to the place, highest first, beside untrained channels."""
    order = sorted(range(len(shares)), key=lambda unit: -shares[unit].value)
    figure = Figure(figsize=(max(7.0, 0.24 * len(order) + 2), 4), layout="constrained")
    axis = figure.subplots()
    values = 100 * np.array([shares[unit] for unit in order])
    place = np.arange(len(order))
    colours = ["C1" if unit in chosen else "C0" for unit in order]
    axis.bar(place, values[:, 0], color=colours, yerr=spreads(values), capsize=1.5, error_kw={"linewidth": 0.8})
    drawn = sorted((interval.value for interval in random_agent), reverse=True)
    axis.plot(100 * np.array(drawn), ".", color="0.45", label="channels with random weights, in their own order")
    axis.axhline(100 * none.value, color="black", linewidth=1, label="no edit")
    axis.axhspan(100 * none.low, 100 * none.high, color="black", alpha=0.08)
    axis.set_xticks(place, [str(unit) for unit in order], fontsize=7, rotation=90)
    axis.set(xlabel="unit (orange: reported)", ylabel="% that come to the place", ylim=(0, 100))
    axis.set_xlim(-0.7, len(order) - 0.3)
    axis.set_title(title, fontsize=10)
    axis.legend(loc="upper right", fontsize=8)
    return figure


def draw_arms(arms: Mapping[str, Mapping[str, Interval]], title: str) -> Figure:
    """Bars with intervals: a group for each set of units, a colour for each arm."""
    figure = Figure(figsize=(max(7.0, 1.9 * len(arms) + 3), 3.8), layout="constrained")
    axis = figure.subplots()
    bars = {words: [found.get(arm) for found in arms.values()] for arm, words in ARMS.items()}
    grouped_bars(axis, list(arms), bars, scale=100)
    axis.set(ylim=(0, 100), ylabel="% that come to the place, 95 % interval")
    axis.set_title(title, fontsize=10)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def draw_end_map(found: EndMap, settings: EnvironmentSettings, title: str) -> Figure:
    """Left, each cell's colour and arrow say what comes of forcing there; then the same without an edit, and what the
    edit adds.
    """
    frame = render_states([found.state.to_bytes()], settings)[0]
    side = found.state.grid.shape[0]
    figure = Figure(figsize=(14, 4.9), layout="constrained")
    panels = figure.subplots(1, 3)
    added = found.reached - found.unedited
    for axis, shares, words, lowest, colours in zip(
        panels,
        (found.reached, found.unedited, added),
        ("forced at a cell: share that comes; arrow, to the mean end", "no edit: share that comes to each cell",
         "what forcing there adds"),
        (0, 0, -1),
        ("viridis", "viridis", "RdBu_r"),
        strict=True,
    ):  # fmt: skip
        axis.imshow(frame, extent=(0, side, 0, side), interpolation="nearest", alpha=0.55)
        x, y = (found.cells[np.isfinite(shares)] + 0.5).T
        drawn = axis.scatter(
            x, y, c=shares[np.isfinite(shares)], vmin=lowest, vmax=1, cmap=colours, marker="s", s=300, alpha=0.85
        )
        for start in found.starts:
            axis.plot(start[0] + 0.5, start[1] + 0.5, "o", color="none", markeredgecolor="#ff2d78", markersize=13,
                      markeredgewidth=1.8)  # fmt: skip
        axis.set_title(words, fontsize=8.5)
        axis.axis("off")
        figure.colorbar(drawn, ax=axis, shrink=0.75)
    x, y = (found.cells + 0.5).T
    dx, dy = (found.ends - (found.cells + 0.5)).T
    panels[0].quiver(x, y, dx, dy, color="black", alpha=0.7, angles="xy", scale_units="xy", scale=1, width=0.004)
    figure.suptitle(f"{title}; starts in pink", fontsize=10)
    return figure


def draw_film(scenes: Sequence[Scene], arms: Mapping[str, Visits], settings: EnvironmentSettings) -> Film:
    """The same scenes side by side under each arm, the place framed."""
    states = [scene.state.to_bytes() for scene in scenes]
    frames: dict[tuple[int, str], list[np.ndarray]] = {}
    for arm, visits in arms.items():
        for row, _, frame, _ in retrace(states, visits.actions, settings):
            _frame_cell(frame, scenes[row].place, scenes[row].state.grid.shape[0])
            frames.setdefault((row, arm), []).append(frame)
    cells = np.array([scene.place for scene in scenes])
    reached = {arm: visits.reached(cells) for arm, visits in arms.items()}
    replays, captions = [], []
    for row in range(len(scenes)):
        for arm, visits in arms.items():
            shown, actions = np.stack(frames[row, arm]), np.array(visits.actions[row])
            replays.append(Replay(row, actions, shown, [], np.zeros(len(shown), dtype=np.float32), True))
            captions.append(f"{arm}: {'comes there' if reached[arm][row] else 'does not'}")
    return film_of_replays(replays, captions)


def _frame_cell(frame: np.ndarray, cell: Cell, side: int) -> None:
    """Draw a cell's edge into a frame, in place."""
    size = len(frame) / side
    top, left = round((side - 1 - cell[1]) * size), round(cell[0] * size)
    bottom, right = min(round(top + size), len(frame) - 1), min(round(left + size), len(frame) - 1)
    frame[[top, bottom], left : right + 1] = _PINK
    frame[top : bottom + 1, [left, right]] = _PINK


def spatial_page(
    told: str, kinds: Mapping[str, str], tables: Mapping[str, Table], figures: Mapping[str, Figure],
    films: Sequence[str],
) -> str:  # fmt: skip
    """The page of the study.

    Args:
        told: what is forced, in a sentence or two.
        kinds: a paragraph for each kind of scene.
        tables, figures: by name; those of a kind begin with its name.
        films: names.
    """
    text = [
        told,
        "In each scene a free place away from everything is drawn. Does the agent come within one cell of it? The "
        "units were chosen on validation levels; everything below but the scan is of test levels.",
        "Arms: no edit; the units forced at the mirrored place; as many other units forced at the place; noise as "
        "large as the edit's change, over the whole tap; and what the agent does if its target really lies there, "
        "which tells how often it could come in time.",
    ]
    sections = [
        Section(
            f"{kind} scenes".capitalize(),
            [words],
            [(said, figures[f"{kind}_{name}"]) for name, said in _SHOWN.items() if f"{kind}_{name}" in figures],
            tables[f"{kind}_arms"].columns,
            tables[f"{kind}_arms"].rows,
            films=film_links(name for name in films if name.startswith(kind)),
        )
        for kind, words in kinds.items()
    ]
    return report_page("Drawn to a place", text, sections)
