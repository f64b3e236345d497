"""What a validation found of single latents and channels, as figures."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

Columns = Mapping[str, Float[np.ndarray, " rows"]]


def draw_latents(columns: Columns, title: str) -> Figure:
    """How often latents fire, and against that how strongly and how far apart.

    Args:
        columns: by name `frequency`, `mean_active` and `spread` of each latent; NaN where it never fires.
        title: of the whole.
    """
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    often, strongly, apart = figure.subplots(1, 3)
    frequency = np.asarray(columns["frequency"])
    alive = frequency > 0
    decades = np.log10(frequency[alive])
    often.hist(decades, bins=np.arange(np.floor(decades.min(initial=-1)), 0.01, 0.2).tolist())
    dead = int((~alive).sum())
    often.set(xlabel="log10 firing frequency", ylabel="latents", title=f"{len(frequency)} latents, {dead} never fire")
    for axes, name, label in (
        (strongly, "mean_active", "mean where active"),
        (apart, "spread", "spread within a frame, positions"),
    ):
        axes.plot(decades, np.asarray(columns[name])[alive], ".", alpha=0.6)
        axes.set(xlabel="log10 firing frequency", ylabel=label)
        axes.set_ylim(bottom=0)
    figure.suptitle(title)
    return figure


def draw_channels(explained_variance: Float[np.ndarray, " C"], title: str) -> Figure:
    """What share of each channel's variance is left unexplained; channels that never vary have no bar."""
    figure = Figure(figsize=(max(6.0, 0.16 * len(explained_variance)), 3.4), layout="constrained")
    axes = figure.subplots()
    left = 1 - np.asarray(explained_variance)
    axes.bar(np.arange(len(left)), np.nan_to_num(left))
    for level, style in ((0.01, ":"), (0.1, "--")):
        axes.axhline(level, color="grey", linewidth=0.8, linestyle=style)
    axes.set(xlabel="channel", ylabel="unexplained variance", title=title, xlim=(-0.7, len(left) - 0.3))
    positive = left[left > 0]
    if len(positive):
        axes.set_yscale("log")
        axes.set_ylim(positive.min() / 2, max(1.0, positive.max()))
    return figure
