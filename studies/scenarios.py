"""What do the scenario builders make? A contact sheet, and whether the oracle plays each scenario to its end."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from environments import EnvironmentSettings, State, render_states
from environments.heist import ENTITIES, check_playable, label_states
from interpretability.episodes import first_states
from interpretability.oracle_play import play_oracle_from
from interpretability.pictures import Row, Tile, sheet
from studies.report import Cell, Report, Study, Table
from studies.scenario_gallery import Exhibit, gallery


class Scenarios(Study):
    """Builds every kind of scenario from one level, shows each in a frame, and plays each by the oracle.

    Writes `figures/contact_sheet.png` and the table `scenarios`. Summary: `scenarios/count`, `scenarios/playable`, how
    many `check_playable` passes, and `scenarios/solved`, how many of those the oracle solves in the game.

    Args:
        level: seed of the level that is edited: one whose solution fetches blue, green, red and the gem.
        distribution_mode: of heist.
        seed: of the random builders.

    Raises:
        ValueError: another level.
    """

    def __init__(self, level: int, distribution_mode: Literal["easy", "hard"] = "easy", seed: int = 0) -> None:
        if level < 0 or seed < 0:
            raise ValueError(f"level {level} and seed {seed} must be at least 0")
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.level = level
        self.exhibits = gallery(State.from_bytes(first_states([level], self.settings)[0]), seed)

    def run(self) -> Report:
        """Play, and lay out the frames."""
        states = [exhibit.state.to_bytes() for exhibit in self.exhibits]
        reasons = [_reason(exhibit.state) for exhibit in self.exhibits]
        playable = np.flatnonzero([not reason for reason in reasons])
        played = play_oracle_from([states[row] for row in playable], settings=self.settings)
        solved, steps = np.zeros(len(states), dtype=bool), np.zeros(len(states), dtype=np.int64)
        solved[playable], steps[playable] = played.solved, played.lengths
        labels = label_states(states)
        rows: list[list[Cell]] = [
            [
                exhibit.group,
                exhibit.title,
                ENTITIES[labels.target[row]] if labels.target[row] >= 0 else "none",
                int(labels.path_length[row]),
                int(labels.total_length[row]),
                int(steps[row]),
                "yes" if solved[row] else "no",
                reasons[row],
            ]
            for row, exhibit in enumerate(self.exhibits)
        ]
        headings = ["group", "scenario", "target", "moves to it", "moves in all", "oracle's steps", "solved", "why not"]
        summary = {
            "scenarios/count": float(len(states)),
            "scenarios/playable": float(len(playable)),
            "scenarios/solved": float(solved.sum()),
        }
        picture = contact_sheet(self.exhibits, self.settings, f"Scenarios built from level {self.level}")
        return Report(summary, {"scenarios": Table(headings, rows)}, {"contact_sheet": picture})


def contact_sheet(exhibits: list[Exhibit], settings: EnvironmentSettings, title: str) -> UInt8[Tensor, "H W 3"]:
    """A row of frames, as the game draws them, for each group."""
    frames = torch.from_numpy(render_states([exhibit.state.to_bytes() for exhibit in exhibits], settings))
    groups: dict[str, list[Tile]] = {}
    for exhibit, frame in zip(exhibits, frames, strict=True):
        groups.setdefault(exhibit.group, []).append(Tile(frame, exhibit.title))
    count = max(map(len, groups.values()))
    rows = [Row(group, [], [*tiles, *[None] * (count - len(tiles))]) for group, tiles in groups.items()]
    lines = [
        "Each frame is drawn by the game from an edited state and can be played from. First comes the level itself."
    ]
    return sheet(title, lines, [("", count)], rows)


def _reason(state: State) -> str:
    """Why a scenario cannot be played to its end; nothing if it can."""
    try:
        check_playable(state)
    except ValueError as error:
        return str(error)
    return ""
