"""A picture of what autoencoders cost in latents and bring in explained variance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch import Tensor


class FrontierPoint(NamedTuple):
    """One autoencoder.

    Attributes:
        name: its label.
        kind: autoencoders of one kind share a line and a marker.
        l0: latents above 0 per position.
        explained_variance: fraction.
        dead_fraction: share of latents that never fire.
    """

    name: str
    kind: str
    l0: float
    explained_variance: float
    dead_fraction: float


def draw_frontier(points: Sequence[FrontierPoint], title: str, raw_l0: float | None = None) -> UInt8[Tensor, "H W 3"]:
    """L0 across, explained variance upwards, dead fraction as colour, every point labelled; best is the upper left.

    Args:
        points: those that are not finite are left out.
        raw_l0: channels of the tap above 0 per position, drawn as a line.
    """
    points = [point for point in points if np.isfinite(point[2:]).all()]
    figure = Figure(figsize=(9, 6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    most = max([0.01, *(point.dead_fraction for point in points)])
    shown = None
    kinds = list(dict.fromkeys(point.kind for point in points))
    for number, (kind, marker) in enumerate(zip(kinds, "osD^vP*X" * len(kinds), strict=False)):
        own = sorted((point for point in points if point.kind == kind), key=lambda point: point.l0)
        l0, variances = [point.l0 for point in own], [point.explained_variance for point in own]
        axes.plot(l0, variances, color="0.7", linewidth=1, zorder=1)
        dead = [point.dead_fraction for point in own]
        shown = axes.scatter(
            l0, variances, c=dead, vmin=0, vmax=most, cmap="viridis_r", marker=marker, s=70, edgecolors="0.2",
            label=kind, zorder=2,
        )  # fmt: skip
        for point in own:
            axes.annotate(
                point.name,
                (point.l0, point.explained_variance),
                xytext=(-6, 6) if number % 2 else (6, -11),  # labels of two kinds keep out of each other's way
                ha="right" if number % 2 else "left",
                textcoords="offset points",
                fontsize=8,
            )
    if raw_l0 is not None and np.isfinite(raw_l0):
        axes.axvline(raw_l0, color="0.5", linestyle=":", label=f"channels of the tap, {raw_l0:.3g}")
    axes.set(xlabel="L0: latents above 0 per position", ylabel="explained variance", title=title)
    axes.margins(0.12)
    axes.grid(color="0.92")
    if shown is not None:
        figure.colorbar(shown, label="dead fraction")
        for handle in axes.legend(loc="lower right").legend_handles:
            if isinstance(handle, PathCollection):  # a kind has no one dead fraction
                handle.set_array(None)
                handle.set_facecolor("0.8")
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy())
