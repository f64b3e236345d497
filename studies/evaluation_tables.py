"""How an evaluation is shown: its tables and its figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int
from matplotlib.figure import Figure

from interpretability.episodes import Episodes
from interpretability.outcomes import outcome_intervals
from interpretability.statistics import Interval
from studies.bars import grouped_bars
from studies.report import Cell, Table

Choice = Literal["sampled", "greedy"]
Measured = Mapping[Choice, Mapping[str, dict[str, Interval]]]
"""Intervals by way of choosing actions, group of levels, and quantity."""
Played = Mapping[Choice, Sequence[Episodes]]
"""Each agent's episodes by way of choosing actions."""

# quantity -> heading, factor, digits and unit
_SHOWN = {
    "return": ("return", 1, 2, ""),
    "return_iqm": ("return, interquartile mean", 1, 2, ""),
    "solved": ("solved", 100, 1, " %"),
    "episode_length": ("episode length", 1, 1, ""),
    "optimality": ("oracle's steps / agent's", 1, 2, ""),
}


def group_table(measured: Measured, counts: Mapping[str, int]) -> Table:
    """One row for each way of choosing and group of levels; where there is one group, it is not named."""
    rows = {(choice, group): intervals for choice, parts in measured.items() for group, intervals in parts.items()}
    names = _quantities(rows.values())
    groups = ["keys"] if len(counts) > 1 else []
    return Table(
        ["actions", *groups, "levels", *(_SHOWN[name][0] for name in names)],
        [
            [choice, *([group] if groups else []), counts[group], *_cells(intervals, names)]
            for (choice, group), intervals in rows.items()
        ],
    )


def agent_table(played: Played, agents: Sequence[str], trainings: Sequence[str], oracle: Episodes | None) -> Table:
    """One row for each way of choosing and agent, with how it was trained; bounds over levels."""
    rows = {
        (choice, agent): outcome_intervals([run], oracle)
        for choice, runs in played.items()
        for agent, run in zip(agents, runs, strict=True)
    }
    names, training_of = _quantities(rows.values()), dict(zip(agents, trainings, strict=True))
    return Table(
        ["actions", "agent", "training", *(_SHOWN[name][0] for name in names)],
        [[choice, agent, training_of[agent], *_cells(intervals, names)] for (choice, agent), intervals in rows.items()],
    )


def episode_table(
    played: Played, agents: Sequence[str], keys: Int[np.ndarray, " L"] | None, oracle: Episodes | None
) -> Table:
    """One row an episode."""
    count = len(next(iter(played.values()))[0].levels)
    known = [""] * count if keys is None else keys.tolist()
    best = [""] * count if oracle is None else oracle.lengths.tolist()
    rows: list[list[Cell]] = []
    for choice, runs in played.items():
        for agent, run in zip(agents, runs, strict=True):
            outcomes = (run.returns, run.solved.astype(int), run.lengths, run.cut.astype(int))
            columns = (run.levels.tolist(), known, *(values.tolist() for values in outcomes), best)
            rows += [[choice, *cells, agent] for cells in zip(*columns, strict=True)]
    headings = ["actions", "level", "keys", "return", "solved", "length", "cut", "oracle", "agent"]
    return Table(headings, rows, printed=False)


def draw_outcomes(measured: Measured, played: Played, max_steps: int) -> Figure:
    """Return, by number of keys where there are some, with 95 % intervals, beside episode lengths."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars: dict[str, list[Interval]] = {
        choice: [intervals["return"] for intervals in parts.values()] for choice, parts in measured.items()
    }
    groups = list(next(iter(measured.values())))
    grouped_bars(left, groups, bars)
    for choice, runs in played.items():
        lengths = np.concatenate([run.lengths for run in runs])
        right.hist(lengths, bins=np.linspace(0, max_steps, 51).tolist(), histtype="step", label=choice)
    by, among = (" by number of keys", "keys in the level") if len(groups) > 1 else ("", "")
    left.set(xlabel=among, ylabel="mean return, 95 % interval", title=f"Return{by}")
    right.set(xlabel="steps", ylabel="episodes", yscale="log", title="Episode length")
    right.legend()
    return figure


def _quantities(rows: Iterable[dict[str, Interval]]) -> list[str]:
    first = next(iter(rows))
    return [name for name in _SHOWN if name in first]


def _cells(intervals: dict[str, Interval], names: Sequence[str]) -> list[Cell]:
    return [_text(intervals[name], *_SHOWN[name][1:]) for name in names]


def _text(interval: Interval, factor: int, digits: int, unit: str) -> str:
    if not np.isfinite(interval.value):
        return "none"
    value, low, high = (f"{factor * bound:.{digits}f}" for bound in interval)
    return f"{value}{unit} ({low} to {high})"
