"""Does the agent work out the way to what it does not want, too?"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from environments import TRAINING_START, EnvironmentSettings, State, held_out_levels, render_states
from environments.heist import ENTITIES, choice_maze
from environments.heist.asked import label_asked
from environments.heist.random_mazes import open_ways
from environments.state import WALL
from interpretability.choices import play_choices
from interpretability.episodes import first_states
from interpretability.patching import record_taps
from interpretability.statistics import Interval, bootstrap_interval, grouped_mean, join_metrics, wilson_interval
from networks import DEFAULT_PRECISION, Precision, TappedAgent, load_agent
from studies.arguments import check_at_least_one, check_distances, check_not_empty, check_not_negative
from studies.bars import grouped_bars
from studies.report import Cell, Report, Study, Table
from studies.retargeting_search import ASKED
from studies.subject import choose_device

ROLES: Final = {"wanted": slice(0, 1), "other": slice(1, 3)}
"""Columns of what the agent touches first, and of what it passes by."""
_PENALTIES: Final = np.logspace(0, 5, 6).tolist()
_AT_ONCE: Final = 256  # frames of one pass


class Plans(Study):
    """In mazes of three entities to choose from, reads where the way starts, to the wanted one and to the others.

    Wanted is the one that the unedited agent touches first. The player stands at a fork from which each of the three is
    reached by another first move, so that none of them gives another away; what is read is the first frame of each
    maze. A linear probe (one-vs-rest ridge classification of standardised activations, the penalty chosen by
    leave-one-out on the mazes it is fitted on) is fitted for each entity and role on mazes of training levels, and
    scored on mazes of test levels. An agent that works out only the way to what it wants holds the one and not the
    others.

    Summary, with a bootstrap over mazes: `plans/TAP/ROLE`, how often the direction is read rightly, ROLE `wanted` or
    `other`, all entities together; `plans/TAP/random_agent_ROLE`, of an agent with random weights in the same mazes;
    `plans/TAP/above_random_ROLE`, the difference; `plans/guessed`, how often a guess is right for whoever knows the way
    to one of the others and which ways are open; `plans/levels`, test mazes; `plans/touched`, of them those in which
    one of the three is touched. The table has every entity by itself.

    Args:
        agent: path of the agent's weights.
        taps: maps or flat taps; a probe weighs every number of them.
        fit_levels: mazes to fit on, one a training level.
        num_levels: mazes to score on, one a test level.
        distances: moves to the entities, least and greatest.
        least: mazes in which an entity must have a role for a probe to be fitted on them.
        max_steps: without a touch until here nothing is wanted.
        distribution_mode: of heist.
        seed: of mazes, noise and random weights.
        num_environments: mazes played at a time.
        precision: in which the agent plays, and its activations are recorded.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that is none or is `logits` or `value`, distances that
            do not rise, numbers below 1, a negative seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("pool4", "fc1", "fc2"),
        fit_levels: int = 2_400,
        num_levels: int = 800,
        distances: tuple[int, int] = (2, 6),
        least: int = 50,
        max_steps: int = 100,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        check_not_empty({"taps": taps})
        numbers = {"fit_levels": fit_levels, "least": least, "max_steps": max_steps}
        check_at_least_one(numbers | {"num_environments": num_environments})
        check_not_negative({"seed": seed})
        check_distances(distances)
        self.levels = {
            "fit": range(TRAINING_START, TRAINING_START + fit_levels),
            "test": held_out_levels("test", num_levels),
        }
        self.agent = load_agent(agent).to(choose_device(device))
        self.agent.check_taps(taps, inner=True)
        self.taps, self.distances, self.least, self.max_steps, self.seed = taps, distances, least, max_steps, seed
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.num_environments = num_environments
        self.precision: Precision = precision

    def run(self) -> Report:
        """Play, record, fit and score."""
        fit, test = (self._mazes(levels, name) for name, levels in self.levels.items())
        untrained = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        acts = [
            (self._record(network, fit.frames), self._record(network, test.frames))
            for network in (self.agent, untrained)
        ]
        intervals = {
            "plans/touched": wilson_interval(len(test.entities), len(self.levels["test"])),
            "plans/guessed": bootstrap_interval(1 / (test.open_ways - 1), seed=self.seed),
        }
        rows: list[list[Cell]] = []
        for tap in self.taps:
            for role, which in ROLES.items():
                read, control = (self._read(of_fit[tap], of_test[tap], fit, test, which) for of_fit, of_test in acts)
                intervals |= {
                    f"plans/{tap}/{role}": grouped_mean(read.right, read.maze, seed=self.seed),
                    f"plans/{tap}/random_agent_{role}": grouped_mean(control.right, read.maze, seed=self.seed),
                    f"plans/{tap}/above_random_{role}": grouped_mean(
                        read.right * 1.0 - control.right, read.maze, seed=self.seed
                    ),
                }
                for entity in np.unique(read.entity):
                    here = read.entity == entity
                    shares = [wilson_interval(int(one.right[here].sum()), int(here.sum())) for one in (read, control)]
                    fitted = int((fit.entities[:, which] == entity).sum())
                    rows.append([tap, role, ENTITIES[entity], fitted, int(here.sum()), *shares[0], *shares[1]])
        columns = ["tap", "way to", "entity", "fitted on", "mazes", "read", "low", "high"]
        columns += ["random weights", "random weights low", "random weights high"]
        summary = {"plans/levels": float(len(self.levels["test"]))} | join_metrics(intervals)
        return Report(summary, {"by_entity": Table(columns, rows)}, {"directions": _draw(self.taps, intervals)})

    def _mazes(self, levels: Sequence[int], name: str) -> "_Mazes":
        """Those in which the agent touches something."""
        triples, made = list(combinations(ASKED, 3)), []
        for number, data in enumerate(first_states(levels, self.settings)):
            base, triple = State.from_bytes(data), triples[number % len(triples)]
            rng = np.random.default_rng([self.seed, base.level_seed])
            made.append(choice_maze(base, rng, entities=triple, distances=self.distances))
        touched = play_choices(
            self.agent, [maze.to_bytes() for maze in made], settings=self.settings, seed=self.seed,
            num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision,
            progress=f"what is wanted ({name})",
        ).touched  # fmt: skip
        offered = [[ENTITIES.index(one) for one in triples[row % len(triples)]] for row in range(len(made))]
        known = [row for row in range(len(made)) if touched[row] in offered[row]]
        if not known:
            raise ValueError(f"in none of {len(made)} mazes is an entity touched: more max_steps or levels")
        first = {row: int(touched[row]) for row in known}
        entities = np.array([[first[row], *(one for one in offered[row] if one != first[row])] for row in known])
        mazes, direction = [made[row] for row in known], np.empty_like(entities)
        for entity in np.unique(entities):
            row, column = np.nonzero(entities == entity)
            direction[row, column] = label_asked([mazes[index] for index in row], ENTITIES[entity]).direction
        frames = torch.from_numpy(render_states([maze.to_bytes() for maze in mazes], self.settings))
        players = [(int(maze.entities["x"][0]), int(maze.entities["y"][0])) for maze in mazes]
        ways = [open_ways(maze.grid != WALL, player) for maze, player in zip(mazes, players, strict=True)]
        return _Mazes(frames, entities, direction, np.array(ways))

    def _record(self, agent: TappedAgent, frames: UInt8[Tensor, "N 64 64 3"]) -> dict[str, Float[Tensor, "N D"]]:
        parts = [record_taps(agent, part, list(self.taps), self.precision) for part in frames.split(_AT_ONCE)]
        return {tap: torch.cat([part[tap].flatten(1).float().cpu() for part in parts]) for tap in self.taps}

    def _read(
        self, fitted: Float[Tensor, "N D"], scored: Float[Tensor, "M D"], fit: "_Mazes", test: "_Mazes", role: slice
    ) -> "_Reading":
        """What the probe of each entity with a role reads of the test mazes; of few mazes none is fitted."""
        readings = []
        for entity in np.unique(test.entities[:, role]):
            (row, column), (maze, place) = (np.nonzero(part.entities[:, role] == entity) for part in (fit, test))
            answers = fit.direction[:, role][row, column]
            if len(row) < self.least or len(np.unique(answers)) < 2:
                continue
            probe = make_pipeline(StandardScaler(), RidgeClassifierCV(_PENALTIES)).fit(fitted[row].numpy(), answers)
            right = probe.predict(scored[maze].numpy()) == test.direction[:, role][maze, place]
            readings.append(_Reading(right, maze, np.full(len(maze), entity)))
        if not readings:
            raise ValueError(f"no entity has a role in {self.least} of the mazes to fit on: more fit_levels")
        return _Reading(*(np.concatenate(parts) for parts in zip(*readings, strict=True)))


class _Mazes(NamedTuple):
    """First frames, the wanted entity and the two others, where the ways to them start, and how many ways are open."""

    frames: UInt8[Tensor, "N 64 64 3"]
    entities: Int[np.ndarray, "N 3"]
    direction: Int[np.ndarray, "N 3"]
    open_ways: Int[np.ndarray, " N"]


class _Reading(NamedTuple):
    """Whether a direction is read rightly, of which maze and to which entity."""

    right: Bool[np.ndarray, " n"]
    maze: Int[np.ndarray, " n"]
    entity: Int[np.ndarray, " n"]


def _draw(taps: Sequence[str], intervals: Mapping[str, Interval]) -> Figure:
    """How often directions are read rightly, by tap, and what a guess gives."""
    figure = Figure(figsize=(1.3 * len(taps) + 4.5, 3.6), layout="constrained")
    axes = figure.subplots()
    said = {"wanted": "to what is wanted", "other": "to the others"}
    bars = {
        f"{said[role]}{', random weights' if kind else ''}": [intervals[f"plans/{tap}/{kind}{role}"] for tap in taps]
        for role in ROLES
        for kind in ("", "random_agent_")
    }
    grouped_bars(axes, taps, bars)
    guess = intervals["plans/guessed"].value
    axes.axhline(guess, color="black", linestyle=":", label="guessed from one of the other ways")
    axes.set(ylabel="direction read rightly, 95 % interval", ylim=(0, 1))
    figure.suptitle("Where does the way start?")
    figure.legend(loc="outside right upper")
    return figure
