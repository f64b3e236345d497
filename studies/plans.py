"""Does the agent work out the way to what it does not want, too?"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from environments import TRAINING_START, EnvironmentSettings, held_out_levels, render_states
from environments.heist import DIRECTIONS, ENTITIES
from environments.heist.asked import label_asked
from interpretability.choices import play_choices
from interpretability.episodes import first_states
from interpretability.patching import record_taps
from interpretability.statistics import (
    Interval,
    difference_of_means,
    join_metrics,
    paired_bootstrap,
    wilson_interval,
)
from networks import Precision, TappedAgent, load_agent
from studies.arguments import check_at_least_one, check_not_empty
from studies.bars import grouped_bars
from studies.report import Cell, Report, Study, Table
from studies.retargeting_search import choice_mazes
from studies.subject import choose_device

ROLES: Final = ("wanted", "other")
_PENALTIES: Final = np.logspace(0, 5, 6).tolist()
_AT_ONCE: Final = 256  # frames of one pass


class Plans(Study):
    """In mazes of two entities to choose from, reads where the way starts, to the wanted one and to the other.

    Wanted is the one that the unedited agent touches first. The player stands at a fork, from which the ways to the two
    start in different directions; what is read is the first frame of each maze. A linear probe (one-vs-rest ridge
    classification of standardised activations, the penalty chosen by leave-one-out on the mazes it is fitted on) is
    fitted for each entity and role on mazes of training levels, and scored on mazes of test levels. An agent that only
    plans the way to what it wants holds the one and not the other; its plan cannot be switched behind the place where
    it is made.

    Summary, with Wilson's interval over mazes: `plans/TAP/ROLE`, the share of test mazes in which the direction is read
    rightly, ROLE `wanted` or `other`, all entities together; `plans/TAP/random_agent_ROLE`, of an agent with random
    weights in the same mazes; `plans/TAP/above_random_ROLE`, the difference, with a paired bootstrap;
    `plans/guessed_ROLE`, if the direction of the way to the one of the two is told and that to the other is guessed: no
    less can be read by whoever knows the one; `plans/levels`, test mazes; `plans/touched`, of them those in which
    either is touched. The table has every entity by itself.

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
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that is none or is `logits` or `value`, distances that
            do not rise, numbers below 1.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("pool2", "pool3", "pool4", "fc1", "fc2"),
        fit_levels: int = 6_400,
        num_levels: int = 1_600,
        distances: tuple[int, int] = (2, 6),
        least: int = 50,
        max_steps: int = 100,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = "bf16",
        device: str = "auto",
    ) -> None:
        check_not_empty({"taps": taps})
        numbers = {"fit_levels": fit_levels, "least": least, "max_steps": max_steps}
        check_at_least_one(numbers | {"num_environments": num_environments})
        if not 1 <= distances[0] <= distances[1]:
            raise ValueError(f"distances {list(distances)} must rise from at least 1: least, then greatest")
        self.levels = {
            "fit": range(TRAINING_START, TRAINING_START + fit_levels),
            "test": held_out_levels("test", num_levels),
        }
        self.agent = load_agent(agent).to(choose_device(device))
        self.agent.check_taps(taps)
        if behind := [tap for tap in taps if tap.split(".")[0] in ("logits", "value")]:
            raise ValueError(f"taps: {behind[0]} is what the plan ends in: choose places inside the network")
        self.taps, self.distances, self.least, self.max_steps, self.seed = taps, distances, least, max_steps, seed
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.num_environments = num_environments
        self.precision: Precision = precision

    def run(self) -> Report:
        """Play, record, fit and score."""
        parts = {name: self._part(levels, name) for name, levels in self.levels.items()}
        untrained = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        acts = {
            (kind, name): self._record(network, part.frames)
            for kind, network in (("agent", self.agent), ("random_agent", untrained))
            for name, part in parts.items()
        }
        fit, test = parts["fit"], parts["test"]
        intervals: dict[str, Interval] = {"plans/touched": wilson_interval(len(test.pair), len(self.levels["test"]))}
        rows: list[list[Cell]] = []
        for number, role in enumerate(ROLES):
            guessed = _guess(fit.direction, test.direction, number)
            intervals[f"plans/guessed_{role}"] = _share(guessed)
            for tap in self.taps:
                hits = {
                    kind: self._hits(acts[kind, "fit"][tap], acts[kind, "test"][tap], fit, test, number)
                    for kind in ("agent", "random_agent")
                }
                for kind, (found, _) in hits.items():
                    intervals[f"plans/{tap}/{'' if kind == 'agent' else 'random_agent_'}{role}"] = _share(found)
                found, entity = hits["agent"]
                control, _ = hits["random_agent"]
                intervals[f"plans/{tap}/above_random_{role}"] = paired_bootstrap(
                    difference_of_means, [found, control], seed=self.seed
                )
                for one in np.unique(entity):
                    here = entity == one
                    fitted = int((fit.pair[:, number] == one).sum())
                    rows.append(
                        [
                            tap,
                            role,
                            ENTITIES[one],
                            fitted,
                            int(here.sum()),
                            *_share(found[here]),
                            *_share(control[here]),
                        ]
                    )
        columns = ["tap", "way to", "entity", "fitted on", "mazes", "accuracy", "low", "high"]
        columns += ["random weights", "random weights low", "random weights high"]
        summary = {"plans/levels": float(len(self.levels["test"]))} | join_metrics(intervals)
        return Report(summary, {"by_entity": Table(columns, rows)}, {"directions": _draw(self.taps, intervals)})

    def _part(self, levels: Sequence[int], name: str) -> "_Part":
        """The first frame of each maze in which the agent touches one of the two, and where the two ways start."""
        made = choice_mazes(first_states(levels, self.settings), self.seed, self.distances)
        played = play_choices(
            self.agent, [maze.to_bytes() for maze, _ in made], settings=self.settings, seed=self.seed,
            num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision,
            progress=f"what is wanted ({name})",
        )  # fmt: skip
        pairs = np.array([[ENTITIES.index(one) for one in pair] for _, pair in made])
        known = np.flatnonzero((pairs == played.touched[:, None]).any(1))
        if len(known) == 0:
            raise ValueError(f"in none of {len(made)} mazes is either entity touched: more max_steps or levels")
        pair = np.where(pairs[known, :1] == played.touched[known, None], pairs[known], pairs[known, ::-1])
        mazes, direction = [made[row][0] for row in known], np.empty_like(pair)
        for entity in np.unique(pair):
            row, role = np.nonzero(pair == entity)
            direction[row, role] = label_asked([mazes[index] for index in row], ENTITIES[entity]).direction
        frames = render_states([maze.to_bytes() for maze in mazes], self.settings)
        return _Part(torch.from_numpy(frames), pair, direction)

    def _record(self, agent: TappedAgent, frames: UInt8[Tensor, "N 64 64 3"]) -> dict[str, Float[Tensor, "N D"]]:
        parts = [record_taps(agent, part, list(self.taps)) for part in frames.split(_AT_ONCE)]
        return {tap: torch.cat([part[tap].flatten(1).float().cpu() for part in parts]) for tap in self.taps}

    def _hits(
        self,
        fitted: Float[Tensor, "N D"],
        scored: Float[Tensor, "M D"],
        fit: "_Part",
        test: "_Part",
        role: int,
    ) -> tuple[Bool[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """Whether each test maze's direction is read rightly, and of which entity it is; of those with a probe."""
        hit, entities = [], []
        for entity in np.unique(test.pair[:, role]):
            of_fit, of_test = fit.pair[:, role] == entity, test.pair[:, role] == entity
            answers = fit.direction[of_fit, role]
            if of_fit.sum() < self.least or len(np.unique(answers)) < 2:
                continue
            probe = make_pipeline(StandardScaler(), RidgeClassifierCV(_PENALTIES))
            read = probe.fit(fitted[of_fit].numpy(), answers).predict(scored[of_test].numpy())
            hit.append(read == test.direction[of_test, role])
            entities.append(np.full(int(of_test.sum()), entity))
        if not hit:
            raise ValueError(f"no entity is {ROLES[role]} in {self.least} of the mazes to fit on: more fit_levels")
        return np.concatenate(hit), np.concatenate(entities)


class _Part(NamedTuple):
    """Mazes: their first frames, the wanted entity and the other, and where the ways to them start."""

    frames: UInt8[Tensor, "N 64 64 3"]
    pair: Int[np.ndarray, "N 2"]
    direction: Int[np.ndarray, "N 2"]


def _guess(fit: Int[np.ndarray, "N 2"], test: Int[np.ndarray, "M 2"], role: int) -> Bool[np.ndarray, " M"]:
    """Whether the direction of one role is guessed rightly from that of the other by what was most frequent with it."""
    counts = np.zeros((len(DIRECTIONS), len(DIRECTIONS)), dtype=np.int64)
    np.add.at(counts, (fit[:, 1 - role], fit[:, role]), 1)
    return counts.argmax(1)[test[:, 1 - role]] == test[:, role]


def _share(hits: Bool[np.ndarray, " N"]) -> Interval:
    return wilson_interval(int(hits.sum()), len(hits))


def _draw(taps: Sequence[str], intervals: Mapping[str, Interval]) -> Figure:
    """Accuracies by tap, and what a guess from the other way gives."""
    figure = Figure(figsize=(1.3 * len(taps) + 4.5, 3.6), layout="constrained")
    axes = figure.subplots()
    said = {"wanted": "to what is wanted", "other": "to the other"}
    bars = {
        f"{said[role]}{', random weights' if kind else ''}": [intervals[f"plans/{tap}/{kind}{role}"] for tap in taps]
        for role in ROLES
        for kind in ("", "random_agent_")
    }
    grouped_bars(axes, taps, bars)
    guess = intervals["plans/guessed_other"].value
    axes.axhline(guess, color="black", linestyle=":", label="guessed from the other way")
    axes.set(ylabel="direction read rightly, 95 % interval", ylim=(0, 1))
    figure.suptitle("Where does the way start?")
    figure.legend(loc="outside right upper")
    return figure
