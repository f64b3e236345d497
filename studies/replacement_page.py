"""How replacing is shown: what is left of play, maps side by side, and the page."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from interpretability.observed_episode import most_varying
from interpretability.report_page import Section, film_links, report_page
from studies.report import Table

ARMS: Final = {
    "plan": "scene and plan",
    "target": "scene and target",
    "scene": "scene",
    "mean": "nothing (the mean)",
    "shuffled": "other frames' labels",
}
_CHANNELS: Final = 5


def draw_arms(taps: Sequence[str], summary: Mapping[str, float]) -> Figure:
    """Levels solved with each arm in the tap's place, and how far the policy is from the untouched one."""
    figure = Figure(figsize=(3.2 + 3.2 * len(taps), 6.4), layout="constrained")
    panels = figure.subplots(2, len(taps), squeeze=False, sharey="row")
    for column, tap in enumerate(taps):
        for row, name in enumerate(("solved", "explained_variance")):
            axes = panels[row, column]
            bars = {words: f"replacement/{tap}/{arm}/{name}" for arm, words in ARMS.items()}
            if name == "solved":
                bars = {"untouched": "replacement/clean/solved"} | bars
            else:
                bars["scene and plan,\nrandom weights"] = f"replacement/{tap}/random_agent/{name}"
            known = {words: key for words, key in bars.items() if key in summary}
            values = np.array([summary[key] for key in known.values()])
            bounds = np.array([[summary[f"{key}_low"], summary[f"{key}_high"]] for key in known.values()])
            spread = np.abs(bounds - values[:, None])
            colours = ["0.4" if words == "untouched" else "0.75" if "random" in words else "C0" for words in known]
            axes.bar(range(len(values)), values, yerr=spread.T, capsize=3, color=colours)
            axes.set_xticks(range(len(values)), list(known), rotation=25, ha="right", fontsize=8)
            axes.set_ylim(min(0.0, float((values - spread[:, 0]).min())) * 1.1, 1.02)
            axes.axhline(0, color="0.6", linewidth=0.8)
            axes.set_ylabel(name.replace("_", " ") if column == 0 else "")
            axes.set_title(tap if row == 0 else "", fontsize=11)
    figure.suptitle("A tap written from labels, 95 % intervals over levels")
    return figure


def draw_maps(
    frames: UInt8[Tensor, "N 64 64 3"], shown: Mapping[str, Mapping[str, Float[Tensor, "N C H W"]]]
) -> Figure:
    """The channels that vary most over one frame: the network's own, and as written from labels."""
    arms = {"real": "the network's own", "plan": ARMS["plan"], "scene": ARMS["scene"]}
    row = len(frames) // 2
    figure = Figure(figsize=(1.9 * (_CHANNELS + 1), 1.75 * len(arms) * len(shown) + 0.3), layout="constrained")
    panels = figure.subplots(len(arms) * len(shown), _CHANNELS + 1, squeeze=False)
    for number, (tap, of) in enumerate(shown.items()):
        units = most_varying(of["real"][row : row + 1], _CHANNELS)
        for place, (arm, words) in enumerate(arms.items()):
            line = panels[number * len(arms) + place]
            line[0].imshow(frames[row].numpy())
            line[0].set_visible(place == 0)
            for axes, unit in zip(line[1:], units, strict=False):
                own = of["real"][row, unit]
                axes.imshow(of[arm][row, unit].numpy(), vmin=float(own.min()), vmax=float(own.max()), cmap="magma")
                axes.set_title(f"{tap} {unit}" if place == 0 else "", fontsize=9)
            line[1].set_ylabel(words, fontsize=8)
    for axes in panels.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def replacement_page(
    agent: str,
    kernel: int,
    summary: Mapping[str, float],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    films: Sequence[str] = (),
) -> str:
    """The page of the study; `films` are names."""
    text = [
        f"Agent {agent}. A tap's activation is written from labels of the game's state (walls, keys, locks, gem, "
        "player and held keys; with the target also the next pickup's place; with the plan also the way to it and the "
        f"first move) by the mean at each position and one convolution of {kernel} x {kernel} positions, fitted by "
        f"least squares on {summary['replacement/fit_frames']:.0f} frames of training levels. The network plays on "
        "from there; what lies before the tap plays no part.",
        f"Over {summary['replacement/levels']:.0f} test levels. KL and action agreement: with the untouched policy, on "
        "its own play. Recovered: of the return that putting in the mean alone loses. Labels of other frames, and "
        "weights that were never trained, are controls: an untrained network's activation too is a picture of the "
        "scene, so that explained variance alone says little.",
    ]
    sections = [
        Section("What labels keep", (), [("what labels keep", figures["arms"])], tables["arms"].columns,
                tables["arms"].rows),
    ]  # fmt: skip
    if "maps" in figures:
        words = ["One frame of a test level; each channel in the scale of the network's own map."]
        sections.append(Section("Maps side by side", words, [("maps", figures["maps"])]))
    if films:
        words = ["The first test levels untouched, and with the tap written from labels with the plan and without it."]
        sections.append(Section("Films", words, films=film_links(films)))
    return report_page("A tap written from labels", text, sections)
