"""How retargeting is shown: its tables and its figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.figure import Figure

from environments.heist import DIRECTIONS, ENTITIES
from interpretability.edit_search import FoundEdit
from interpretability.statistics import Interval, wilson_interval
from studies.report import Cell, Table

ARMS = {
    "success": "edit",
    "none": "no edit, other noise",
    "random_direction": "random direction",
    "random_units": "random units",
    "sham_position": "sham position",
    "wrong_entity": "wrong entity's edit",
    "entity_moved": "entity moved (bound)",
    "entity_recoloured": "recoloured (bound)",
}


def arm_table(arms: Mapping[str, Mapping[str, Interval]], differences: Mapping[str, Mapping[str, Interval]]) -> Table:
    """One row for each entity and arm, with what the edit adds to the arm on the same mazes."""
    rows: list[list[Cell]] = []
    for entity, intervals in arms.items():
        for arm in ARMS:
            if arm in intervals:
                added = differences[entity].get(arm)
                rows.append([entity, ARMS[arm], *intervals[arm], *(("", "", "") if added is None else added)])
    return Table(["entity", "arm", "touched as asked", "low", "high", "edit minus arm", "low", "high"], rows)


def direction_table(
    directions: Mapping[str, Int[np.ndarray, " n"]], hits: Mapping[str, Mapping[str, Bool[np.ndarray, " n"]]]
) -> Table:
    """The edit's success by the direction of the first move to the asked entity."""
    rows: list[list[Cell]] = []
    for entity, found in directions.items():
        for number, name in enumerate(DIRECTIONS):
            chosen = hits[entity]["success"][found == number]
            if len(chosen):
                rows.append([entity, name, len(chosen), *wilson_interval(int(chosen.sum()), len(chosen))])
    return Table(["entity", "first move", "mazes", "touched as asked", "low", "high"], rows)


def preference_table(pairs: Sequence[tuple[str, str]], touched: Int[np.ndarray, " N"]) -> Table:
    """What the unedited agent touches first, for each pair of entities."""
    rows: list[list[Cell]] = []
    for pair in sorted(set(pairs)):
        chosen = touched[[one == pair for one in pairs]]
        shares = [float((chosen == ENTITIES.index(name)).mean()) for name in pair]
        rows.append([*pair, len(chosen), *shares, float((chosen < 0).mean())])
    return Table(["one", "other", "mazes", "one first", "other first", "neither"], rows)


def frontier_table(frontier: Mapping[str, Sequence[FoundEdit]], tap: str) -> Table:
    """Edits of every size, measured on the search's own validation mazes."""
    return Table(
        ["entity", "tap", "size", "norm", "probability of asked moves", "touched as asked"],
        [
            [entity, tap, one.size, one.norm, one.probability, one.reached]
            for entity, found in frontier.items()
            for one in found
        ],
    )


def draw_frontier(frontier: Mapping[str, Sequence[FoundEdit]], tap: str) -> Figure:
    """Success against the size of the edit and against the size of the change, a line for each entity."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_size, by_norm = figure.subplots(1, 2, sharey=True)
    for entity, found in frontier.items():
        reached = [100 * one.reached for one in found]
        by_size.plot([one.size for one in found], reached, "o-", label=entity.replace("_", " "))
        order = sorted(found, key=lambda one: one.norm)
        by_norm.plot([one.norm for one in order], [100 * one.reached for one in order], "o-")
    by_size.set(xscale="log", xlabel="size of the edit", ylabel="% touched as asked, all validation mazes")
    ticks = sorted({one.size for found in frontier.values() for one in found})
    by_size.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    by_size.minorticks_off()
    by_norm.set(xlabel="root mean squared change at a position", ylim=(0, 100))
    by_size.legend(loc="lower right")
    figure.suptitle(f"Edits at {tap}, measured on mazes of training levels")
    return figure


def draw_arms(arms: Mapping[str, Mapping[str, Interval]], counted: Mapping[str, int], tap: str) -> Figure:
    """Bars with 95 % intervals, a group for each entity."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axis = figure.subplots()
    width = 0.85 / len(ARMS)
    for place, (arm, title) in enumerate(ARMS.items()):
        known = [(group, intervals[arm]) for group, intervals in enumerate(arms.values()) if arm in intervals]
        if not known:
            continue
        values = [100 * interval.value for _, interval in known]
        below = [100 * max(interval.value - interval.low, 0) for _, interval in known]
        above = [100 * max(interval.high - interval.value, 0) for _, interval in known]
        where = [group + (place - (len(ARMS) - 1) / 2) * width for group, _ in known]
        axis.bar(where, values, width, yerr=[below, above], capsize=2, label=title, color=f"C{place}")
    names = [f"{entity.replace('_', ' ')}\n{counted[entity]} mazes" for entity in arms]
    axis.set_xticks(range(len(arms)), names)
    axis.set(ylim=(0, 100), ylabel="% touched as asked, 95 % interval")
    axis.set_title(f"Where the unedited agent takes another entity first; edit at {tap}")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
