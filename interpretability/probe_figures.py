"""What probes read of an agent, as figures: heat maps of target by tap, and confusion matrices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from interpretability.statistics import Interval
from networks.linear_readout import Form


class ProbeResult(NamedTuple):
    """One target read from one tap, on test levels.

    Attributes:
        form: of the features.
        target: what is read.
        tap: where.
        scores: `accuracy` and `macro_f1`, or `r2`.
        controls: accuracy, or R2, by name.
        confusion: counts, rows true, columns given; None for numbers and positions.
        classes: names of the answers, or of the numbers.
        loss: on validation levels, comparable between taps.
        best: whether it is the tap with the lowest loss.
        above_pixels: of the best tap, how far its score lies above that of the pixels, by levels drawn for both at
            once; None elsewhere, and without that control.
    """

    form: Form
    target: str
    tap: str
    scores: dict[str, Interval]
    controls: dict[str, Interval]
    confusion: Float[np.ndarray, "K K"] | None
    classes: tuple[str, ...]
    loss: float
    best: bool
    above_pixels: Interval | None = None

    @property
    def headline(self) -> str:
        """The score that the controls give: `accuracy`, or `r2`."""
        return "accuracy" if "accuracy" in self.scores else "r2"

    def metrics(self, data: str) -> dict[str, Interval]:
        """Scores and controls by metric name; those of the best tap also in the place of the tap's name, `best`."""
        values = self.scores | {f"control_{name}": value for name, value in self.controls.items()}
        if self.above_pixels is not None:
            values["above_pixels"] = self.above_pixels
        return {
            f"probe/{data}/{self.form}/{self.target}/{place}/{name}": value
            for place in (self.tap, *(["best"] if self.best else []))
            for name, value in values.items()
        }


def draw_heat_map(results: Sequence[ProbeResult], title: str) -> Figure:
    """Scores of every target (rows) at every tap (columns), and how far they lie above the best control.

    Args:
        results: of one form.
        title: above the figure.
    """
    targets = list(dict.fromkeys(result.target for result in results))
    taps = list(dict.fromkeys(result.tap for result in results))
    values = np.full((2, len(targets), len(taps)), np.nan)
    for result in results:
        row, column = targets.index(result.target), taps.index(result.tap)
        score = result.scores[result.headline].value
        control = max((interval.value for interval in result.controls.values()), default=np.nan)
        values[:, row, column] = score, score - max(control, 0.0) if control == control else np.nan
    headlines = {result.target: result.headline for result in results}
    names = [f"{target}  ({'R²' if headlines[target] == 'r2' else 'acc.'})" for target in targets]
    figure = Figure(figsize=(4.5 + 1.3 * len(taps), 1.6 + 0.34 * len(targets)), layout="constrained")
    figure.suptitle(f"{title}\nred frame: the tap of lowest loss on validation levels", fontsize=10)
    panels = figure.subplots(1, 2, sharey=True, squeeze=False)[0]
    headings = ("score on test levels", "above the best control (or 0)")
    for axes, panel, heading, low in zip(panels, values, headings, (0.0, -1.0), strict=True):
        axes.imshow(panel.clip(low, 1), cmap="viridis" if low == 0 else "RdBu", vmin=low, vmax=1, aspect="auto")
        axes.set_title(heading, fontsize=10)
        axes.set_xticks(range(len(taps)), taps, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(targets)), names, fontsize=8)
        for (row, column), value in np.ndenumerate(panel):
            if np.isfinite(value):
                dark = value < 0.55 if low == 0 else abs(value) > 0.6
                text = f"{value:.2f}".replace("0.", ".") if value > -1 else "<-1"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    for result in results:
        if result.best:
            corner = (taps.index(result.tap) - 0.46, targets.index(result.target) - 0.46)
            panels[0].add_patch(Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="red", linewidth=1.5))
    return figure


def draw_confusion(result: ProbeResult, title: str) -> Figure:
    """A confusion matrix, each true class (row) as shares of its frames, with the controls beside the accuracy.

    Raises:
        ValueError: a result without one.
    """
    if result.confusion is None:
        raise ValueError(f"{result.target} has no classes, so no confusion matrix: draw another target")
    size = len(result.classes)
    figure = Figure(figsize=(3.4 + 0.55 * size, 2.6 + 0.5 * size), layout="constrained")
    axes = figure.subplots()
    counts = result.confusion
    _matrix(axes, counts / counts.sum(1, keepdims=True).clip(1), result.classes, counts.sum(1))
    said = ", ".join(f"{name} {interval.value:.3f}" for name, interval in result.controls.items())
    accuracy = result.scores["accuracy"]
    axes.set_title(
        f"{title}\naccuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}), "
        f"macro-F1 {result.scores['macro_f1'].value:.3f}\ncontrols: {said or 'none'}",
        fontsize=8,
    )
    return figure


def _matrix(axes: Axes, shares: Float[np.ndarray, "K K"], classes: Sequence[str], counts: np.ndarray) -> None:
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(
        range(len(classes)), [f"{name} ({int(count)})" for name, count in zip(classes, counts, strict=True)], fontsize=7
    )
    axes.set_xlabel("read", fontsize=8)
    axes.set_ylabel("true (frames)", fontsize=8)
    for (row, column), share in np.ndenumerate(shares):
        if counts[row] and share >= 0.005:
            colour = "white" if share > 0.55 else "black"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)
