"""Which labels of natural play are one and the same, and are they apart in deconfounded states?"""

import dataclasses
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from scipy.stats import contingency

from datamodules.recorder import PlaySettings, Recorder
from environments import TEST_LEVELS, VALIDATION_LEVELS, EnvironmentSettings, held_out_levels
from environments.heist import COLOURS, DIRECTIONS, ENTITIES, Labels, deconfounded_states, label_states
from interpretability.episodes import first_states
from networks import DEFAULT_PRECISION, Precision, load_agent
from studies.arguments import check_not_negative
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

DRAWN = ("target", "target_x", "target_y", "direction", "path_length", "keys_left", "keys_held")
"""Labels that `deconfound` draws on their own; the others follow from them and from chance."""
LENGTH_BINS = (0, 3, 5, 7, 9, 11, 13, 15)
"""Lower ends of the bins of path lengths."""
_STEPS = 128  # played on end in each environment
_KEPT = 32  # of them, at random: the nearer two frames are, the less the second says

Columns = dict[str, Int[np.ndarray, " N"]]


class LabelCorrelations(Study):
    """Cramér's V (Cramér 1946) of every pair of labels, in frames of an agent's play and in deconfounded states.

    0 says that two labels are independent, 1 that one of them gives the other away. In N independent frames chance
    alone makes about sqrt((k - 1) / N) of it, k being the larger number of values; the table has that beside each pair.

    Summary: `labels/DATA/mean_v` and `labels/DATA/max_v` over the pairs of labels that `deconfound` draws on their own,
    DATA `natural` or `deconfounded`; `labels/frames`.

    Args:
        agent: path of the weights of the agent whose sampled play is the natural data.
        split: held-out levels that both come from.
        num_frames: frames in each.
        distribution_mode: of heist.
        seed: of the play and of the deconfounded draws.
        precision: in which the agent runs.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, fewer than two frames, more than the split has levels, or
            a negative seed.
    """

    def __init__(
        self,
        agent: str,
        split: Literal["validation", "test"] = "validation",
        num_frames: int = 8_192,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        if num_frames < 2:
            raise ValueError(f"num_frames {num_frames} must be at least 2: one frame correlates with nothing")
        check_not_negative({"seed": seed})
        self.levels = held_out_levels(split, num_frames)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        of_split = VALIDATION_LEVELS if split == "validation" else TEST_LEVELS
        played = EnvironmentSettings("heist", distribution_mode, of_split.start, len(of_split))
        where = choose_device(device)
        play = PlaySettings(environments=-(-num_frames // _KEPT), steps=_STEPS)
        self.recorder = Recorder(
            load_agent(agent), played, (), labels=True, precision=precision, play=play, seed=seed, device=where
        )
        self.num_frames, self.seed = num_frames, seed

    def run(self) -> Report:
        """Play, draw, count."""
        try:
            rows = self.recorder.block(0)
        finally:
            self.recorder.close()
        recorded = {field.name: rows[f"labels/{field.name}"].numpy() for field in dataclasses.fields(Labels)}
        natural = label_columns(Labels(**recorded))
        known = np.flatnonzero(natural["target"] >= 0)[: self.num_frames]
        states = deconfounded_states(first_states(self.levels, self.settings), seed=self.seed)
        data = {
            "natural": {name: column[known] for name, column in natural.items()},
            "deconfounded": label_columns(label_states(states)),
        }
        values = {name: cramers_v(columns) for name, columns in data.items()}
        drawn = [list(data["natural"]).index(name) for name in DRAWN]
        summary = {"labels/frames": float(self.num_frames)}
        for name, matrix in values.items():
            pairs = [matrix[one, other] for one, other in combinations(drawn, 2)]
            summary |= {f"labels/{name}/mean_v": float(np.mean(pairs)), f"labels/{name}/max_v": float(np.max(pairs))}
        return Report(
            summary,
            {"correlations": _pair_table(data, values), "frequencies": _frequency_table(data)},
            {"correlations": _draw(list(data["natural"]), values, len(states))},
        )


def label_columns(labels: Labels) -> Columns:
    """The labels that are compared, as whole numbers from 0; a target of -1 is a level without a solution."""
    count = len(labels.target)
    at = np.maximum(labels.target, 0)
    target = labels.cells[np.arange(count), at]
    player = labels.cells[:, ENTITIES.index("player")]
    colours = 1 << np.arange(len(COLOURS))
    lying = labels.cells[:, : len(COLOURS), 0] >= 0
    return {
        "target": np.where(labels.target == ENTITIES.index("gem"), len(COLOURS), labels.target),
        "target_x": target[:, 0],
        "target_y": target[:, 1],
        "direction": labels.direction,
        "path_length": np.digitize(labels.path_length, LENGTH_BINS) - 1,
        "keys_left": lying.sum(1),
        "keys_held": labels.held.sum(1),
        "colours_left": lying @ colours,
        "colours_held": labels.held @ colours,
        "player_x": player[:, 0],
        "player_y": player[:, 1],
    }


def cramers_v(columns: Columns) -> Float[np.ndarray, "K K"]:
    """Cramér's V of every pair of columns; NaN where one of them has a single value."""
    names = list(columns)
    matrix = np.eye(len(names))
    for one, other in combinations(range(len(names)), 2):
        table = contingency.crosstab(columns[names[one]], columns[names[other]]).count
        v = contingency.association(table, method="cramer") if min(table.shape) > 1 else np.nan
        matrix[one, other] = matrix[other, one] = v
    return matrix


def _pair_table(data: dict[str, Columns], values: dict[str, Float[np.ndarray, "K K"]]) -> Table:
    """One row a pair, those drawn independently first, and among them those that natural play ties most firmly."""
    names = list(data["natural"])
    rows: list[list[Cell]] = []
    for one, other in combinations(range(len(names)), 2):
        pair = names[one], names[other]
        most = max(len(np.unique(columns[label])) for label in pair for columns in data.values())
        chance = float(np.sqrt((most - 1) / len(data["natural"][names[0]])))
        both = "yes" if set(pair) <= set(DRAWN) else "no"
        rows.append([*pair, both, *(float(matrix[one, other]) for matrix in values.values()), chance])
    rows.sort(key=lambda row: (row[2] == "no", -np.nan_to_num(float(row[3]))))
    return Table(["label", "with", "drawn", *data, "chance"], rows)


def _frequency_table(data: dict[str, Columns]) -> Table:
    """Share of frames with each value of each label."""
    rows: list[list[Cell]] = []
    for label, column in data["natural"].items():
        found = np.unique(np.concatenate([column, data["deconfounded"][label]]))
        rows += [
            [
                label,
                _value_name(label, int(value)),
                *(float((columns[label] == value).mean()) for columns in data.values()),
            ]
            for value in found
        ]
    return Table(["label", "value", *data], rows, printed=False)


def _value_name(label: str, value: int) -> str:
    if label == "target":
        return (*COLOURS, "gem")[value]
    if label == "direction":
        return DIRECTIONS[value] if value >= 0 else "none"
    if label == "path_length":
        ends = [f"{low} to {high - 1}" for low, high in pairwise(LENGTH_BINS)]
        return [*ends, f"from {LENGTH_BINS[-1]}"][value]
    if label.startswith("colours"):
        return " ".join(colour for index, colour in enumerate(COLOURS) if value >> index & 1) or "none"
    return str(value)


def _draw(names: list[str], values: dict[str, Float[np.ndarray, "K K"]], frames: int) -> Figure:
    """One heat map for each kind of data; a line sets apart what is drawn on its own."""
    figure = Figure(figsize=(12.5, 6.6), layout="compressed")
    axes = figure.subplots(1, 2, sharey=True)
    shown = [name.replace("_", " ") for name in names]
    for axis, (title, matrix) in zip(axes, values.items(), strict=True):
        lower = np.where(np.tri(len(names), k=-1, dtype=bool), matrix, np.nan)[1:, :-1]
        picture = axis.imshow(lower, cmap="magma_r", vmin=0, vmax=1)
        for row, column in np.argwhere(np.isfinite(lower)).tolist():
            v = lower[row, column]
            colour = "white" if v > 0.45 else "black"
            axis.text(column, row, f"{v:.2f}", ha="center", va="center", fontsize=8, color=colour)
        edge = len(DRAWN) - 1.5
        axis.plot([-0.5, edge, edge], [edge, edge, edge - 1], color="tab:blue", linewidth=2)
        axis.set_title(title)
        axis.set_xticks(range(len(names) - 1), shown[:-1], rotation=45, ha="right")
        axis.set_yticks(range(len(names) - 1), shown[1:])
        axis.spines[:].set_visible(False)
    figure.colorbar(picture, ax=list(axes), label="Cramér's V", shrink=0.7)
    chance = float(np.sqrt(8 / frames))  # of two labels with nine values, such as easy mode's coordinates
    figure.suptitle(
        "How much one label says about another. Above the blue line: labels that are drawn independently.\n"
        f"Chance alone makes up to about {chance:.2f} of independent frames."
    )
    return figure
