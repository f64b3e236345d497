"""A whole episode at a glance: a strip of its frames over the activation of units at every step."""

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure

from interpretability.observed_episode import LATENTS, ObservedEpisode

_FRAMES = 14
_WIDTH = 14.0  # inches
_STYLES = ("-", "--")


def activation_course(episode: ObservedEpisode, source: str, arm: int = 0) -> Float32[np.ndarray, "T n"]:
    """The highest activation of each shown unit of a source at each step, at any position."""
    return episode.arms[arm].maps[source].max((2, 3))


def draw_film_strip(episode: ObservedEpisode, title: str) -> Figure:
    """Frames above, evenly spread over the episode, each over its own step; a panel of courses below for each source.

    Solid lines are the untouched agent's, dashed ones the edited agent's on the same frames; dotted upright lines are
    the steps of the frames shown.
    """
    steps = len(episode.replay.frames)
    shown = np.unique(np.linspace(0, steps - 1, min(_FRAMES, steps)).round().astype(int))
    side = _WIDTH / _FRAMES
    figure = Figure(figsize=(_WIDTH, side + 0.9 + 2.2 * len(episode.units)), layout="constrained")
    panels = figure.subplots(
        1 + len(episode.units), 1, squeeze=False, height_ratios=[side + 0.3, *[2.2] * len(episode.units)]
    )[:, 0]
    strip = panels[0]
    strip.set(xlim=(0, _FRAMES), ylim=(0, 1), aspect="equal", title=title)
    strip.axis("off")
    for place, step in enumerate(shown.tolist()):
        strip.imshow(episode.replay.frames[step], extent=(place + 0.03, place + 0.97, 0.03, 0.97))
        strip.text(place + 0.5, -0.02, f"step {step + 1}", ha="center", va="top", fontsize=8)
    strip.set(xlim=(0, _FRAMES), ylim=(-0.25, 1))
    for axes, (source, units) in zip(panels[1:], episode.units.items(), strict=True):
        for step in shown.tolist():
            axes.axvline(step + 1, color="0.85", linewidth=0.8, linestyle=":")
        for arm, style in zip(range(len(episode.arms)), _STYLES, strict=False):
            course = activation_course(episode, source, arm)
            for column, unit in enumerate(units):
                label = str(unit) if arm == 0 else None
                axes.plot(np.arange(1, steps + 1), course[:, column], style, color=f"C{column % 10}", label=label)
        kind = "latents" if source == LATENTS else source
        axes.set(xlabel="step", ylabel=f"{kind}: highest\nanywhere", xlim=(0.5, steps + 0.5))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return figure
