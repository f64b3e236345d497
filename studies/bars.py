"""Grouped bars with intervals, as several studies draw them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from interpretability.statistics import Interval, spreads


def grouped_bars(
    axes: Axes, names: Sequence[str], bars: Mapping[str, Sequence[Interval | None]], scale: float = 1
) -> None:
    """Bars with intervals side by side, a group for each name, in it a colour for each label.

    Args:
        axes: to draw into.
        names: of the groups.
        bars: by label, an interval for each group; None leaves its place empty.
        scale: that numbers are multiplied by: 100 for percent.
    """
    width = 0.85 / len(bars)
    for number, (label, intervals) in enumerate(bars.items()):
        known = [(group, interval) for group, interval in enumerate(intervals) if interval is not None]
        if known:
            places = [group + (number - (len(bars) - 1) / 2) * width for group, _ in known]
            values = scale * np.array([interval for _, interval in known])
            axes.bar(places, values[:, 0], width, yerr=spreads(values), capsize=2, label=label, color=f"C{number}")
    axes.set_xticks(range(len(names)), names)
