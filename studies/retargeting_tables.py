"""How retargeting is shown: its tables and its figure."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from environments.heist import DIRECTIONS, ENTITIES
from interpretability.edit_search import FoundEdit
from interpretability.statistics import Interval, wilson_interval
from studies.bars import grouped_bars
from studies.report import Cell, Table
from studies.retargeting_arms import Outcome

Frontier = Mapping[str, Mapping[str, Sequence[FoundEdit]]]
"""Edits of several sizes by entity and tap."""
MARKS = "osD^v<>"

ARMS = {
    "success": "edit",
    "none": "no edit, other noise",
    "random_direction": "random direction",
    "random_units": "random units",
    "sham_position": "sham position",
    "wrong_entity": "wrong entity's edit",
    "random_agent": "agent of random weights",
    "entity_moved": "entity moved (bound)",
    "entity_recoloured": "recoloured (bound)",
}


def arm_table(
    outcomes: Mapping[str, Mapping[str, Outcome]], differences: Mapping[str, Mapping[str, Interval]]
) -> Table:
    """One row for each entity and arm, with what the edit adds to the arm on the same mazes."""
    rows: list[list[Cell]] = []
    for entity, arms in outcomes.items():
        for arm in ARMS:
            if arm in arms:
                added = differences[entity].get(arm)
                gain: list[Cell] = ["", "", ""] if added is None else [*added]
                rows.append([entity, ARMS[arm], *arms[arm].share, arms[arm].no_touch, *gain])
    columns = ["entity", "arm", "touched as asked", "low", "high", "no touch", "edit minus arm", "low", "high"]
    return Table(columns, rows)


def edit_table(summary: Mapping[str, float]) -> Table:
    """How large each edit is, and how far it changes the policy where nobody asks for anything.

    Args:
        summary: of the study.
    """
    counted = ("units", "size")
    columns = {
        "norm": "norm", "outside": "of its square outside the asked cell",
        "kl": "KL on natural play", "kl_low": "low", "kl_high": "high", "action_agreement": "action agreement there",
    }  # fmt: skip
    return Table(
        ["entity", *counted, *columns.values()],
        [
            [
                entity,
                *(int(summary[f"retarget/{entity}/{name}"]) for name in counted),
                *(summary.get(f"retarget/{entity}/{name}", "") for name in columns),
            ]
            for entity in ENTITIES
            if f"retarget/{entity}/units" in summary
        ],
    )


def level_table(peaks: Mapping[str, tuple[Float[Tensor, " C"], Float[Tensor, " C"]]], most: int = 8) -> Table:
    """Peaks of units in the asked entity's cell without and with its edit, of those whose peak it changes most.

    Args:
        peaks: by entity (see `peaks_inside`).
        most: units of each entity.
    """
    rows: list[list[Cell]] = []
    for entity, (without, edited) in peaks.items():
        changes = (edited - without).abs()
        changed = [unit for unit in changes.argsort(descending=True)[:most].tolist() if changes[unit] > 0]
        rows += [[entity, unit, float(without[unit]), float(edited[unit])] for unit in changed]
    return Table(["entity", "unit", "peak in its cell", "with the edit"], rows)


def direction_table(
    directions: Mapping[str, Int[np.ndarray, " n"]], outcomes: Mapping[str, Mapping[str, Outcome]]
) -> Table:
    """Every arm by the direction of the first move to where the asked entity lies.

    Args:
        directions: of each counted maze, by entity.
        outcomes: of each arm in these mazes, by entity.
    """
    rows: list[list[Cell]] = []
    for entity, found in directions.items():
        for arm in ARMS:
            for number, name in enumerate(DIRECTIONS):
                if arm not in outcomes[entity]:
                    continue
                there = outcomes[entity][arm].where(found == number)
                if len(there.rows):
                    rows.append([entity, ARMS[arm], name, len(there.rows), *there.share, there.no_touch])
    columns = ["entity", "arm", "first move", "mazes", "touched as asked", "low", "high", "no touch"]
    return Table(columns, rows, printed=False)


def preference_table(pairs: Sequence[tuple[str, str]], touched: Int[np.ndarray, " N"]) -> Table:
    """What the unedited agent touches first, for each pair of entities."""
    rows: list[list[Cell]] = []
    for pair in sorted(set(pairs)):
        chosen = touched[[one == pair for one in pairs]]
        hits = [chosen == ENTITIES.index(pair[0]), chosen == ENTITIES.index(pair[1]), chosen < 0]
        shares = [bound for hit in hits for bound in wilson_interval(int(hit.sum()), len(chosen))]
        rows.append([*pair, len(chosen), *shares])
    bounds = [column for name in ("one first", "other first", "neither") for column in (name, "low", "high")]
    return Table(["one", "other", "mazes", *bounds], rows)


def frontier_table(frontier: Frontier, mazes: int) -> Table:
    """Edits of every tap and size, measured on so many validation mazes of the search's own."""
    return Table(
        ["entity", "tap", "size", "norm", "probability of asked moves", "touched as asked", "low", "high"],
        [
            [entity, tap, one.size, one.norm, one.probability, *wilson_interval(round(one.reached * mazes), mazes)]
            for entity, taps in frontier.items()
            for tap, found in taps.items()
            for one in found
        ],
    )


def draw_frontier(frontier: Frontier) -> Figure:
    """Success against the size of the edit and against the size of the change, a line for each entity and tap."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_size, by_norm = figure.subplots(1, 2, sharey=True)
    several = max(len(taps) for taps in frontier.values()) > 1
    for colour, (entity, taps) in enumerate(frontier.items()):
        for mark, (tap, found) in enumerate(taps.items()):
            style = {"color": f"C{colour}", "marker": MARKS[mark % len(MARKS)]}
            title = entity.replace("_", " ") + (f", {tap}" if several else "")
            by_size.plot([one.size for one in found], [100 * one.reached for one in found], label=title, **style)
            order = sorted(found, key=lambda one: one.norm)
            by_norm.plot([one.norm for one in order], [100 * one.reached for one in order], **style)
    by_size.set(xscale="log", xlabel="size of the edit", ylabel="% touched as asked, all validation mazes")
    ticks = sorted({one.size for taps in frontier.values() for found in taps.values() for one in found})
    by_size.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    by_size.minorticks_off()
    by_norm.set(xlabel="root mean squared change at a position", ylim=(0, 100))
    by_norm.legend(*by_size.get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"Edits at {in_words(frontier)}, measured on mazes of training levels")
    return figure


def in_words(taps: Mapping[str, Iterable[str]]) -> str:
    """The different taps of all entities, in the order in which they come."""
    return ", ".join(dict.fromkeys(tap for one in taps.values() for tap in one))


def draw_arms(outcomes: Mapping[str, Mapping[str, Outcome]], where: str) -> Figure:
    """Bars with 95 % intervals, a group for each entity; `where` names the edited tap."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axis = figure.subplots()
    names = [f"{entity.replace('_', ' ')}\n{len(arms['success'].rows)} mazes" for entity, arms in outcomes.items()]
    bars = {
        title: [arms[arm].share if arm in arms else None for arms in outcomes.values()] for arm, title in ARMS.items()
    }
    grouped_bars(axis, names, bars, scale=100)
    axis.set(ylim=(0, 100), ylabel="% touched as asked, 95 % interval")
    axis.set_title(f"Where the unedited agent takes another entity first; edit at {where}")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
