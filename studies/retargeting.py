"""Can an agent be sent after another entity? An edit searched on tuning mazes, and all its controls, on others."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool

from environments import TRAINING_START, EnvironmentSettings, State, held_out_levels
from environments.heist import COLOURS, ENTITIES, choice_maze, recolour, swap_entities
from interpretability.choices import GEM, NOTHING, Choices, play_choices, play_to_end
from interpretability.asked_moves import AskedMoves, asked_moves, own_moves
from interpretability.edit_search import FoundEdit, search_edit, search_learned, smallest
from interpretability.episodes import first_states, play_episodes
from interpretability.policy_comparison import PolicyComparisons
from interpretability.statistics import Interval, join_metrics, wilson_interval
from networks import Edit, Precision, load_agent
from networks.channel_edit import (
    MixingEdit,
    RandomDirection,
    RepaintEdit,
    ShamPosition,
    TapEdit,
    load_edit,
    on_random_units,
)
from studies.report import Report, Study
from studies.retargeting_tables import arm_table, draw_arms, frontier_table, preference_table

ASKED = (*(f"{colour}_key" for colour in COLOURS), "gem")


@dataclass(frozen=True)
class SearchSettings:
    """How edits are searched for; see `search_edit` and `search_learned`.

    Attributes:
        kind: `channels` scales and shifts a few channels; `mixing` reads some directions of channels and writes
            others; `repaint` paints over what a few small detectors see. All do the same at every position.
        mazes: tuning mazes an entity, of training levels; a fourth as many more validate.
        places: at which the player is put in each of them.
        unit_counts: sizes of edits that are tried: channels, directions, or detectors.
        kernel: side of the repainting detectors, in positions of the tap.
        steps: gradient steps of each fit.
        rounds: how often the agent plays with an edit while that is fitted, to learn from its mistakes; not channels.
        played: mazes that it plays each time.
        sparsity: weight of the penalty on the change of channels; the others have none.
        keep: the smallest edit is taken that reaches its entity in this part of as many mazes as the best.
    """

    kind: Literal["channels", "mixing", "repaint"] = "repaint"
    mazes: int = 600
    places: int = 8
    unit_counts: tuple[int, ...] = (4, 8, 16, 32)
    kernel: int = 3
    steps: int = 1_200
    rounds: int = 3
    played: int = 200
    sparsity: float = 0.02
    keep: float = 0.98


class Retargeting(Study):
    """Sends an agent after each entity by a fixed edit, and does with every control arm what it does with the edit.

    In each maze two of the entities can be fetched at once, in different directions. An edit is a function of the
    asked entity and its tap's activation alone. It counts only where the unedited agent, with the same noise, touches
    another entity first; touching nothing within `max_steps` is a failure.

    Summary, with 95 % Wilson bounds over mazes: `retarget/ENTITY/success` (the edit), `retarget/ENTITY/ARM`, over the
    same mazes: `none` (the unedited agent with other noise: how often it would have gone there anyway),
    `random_direction` (as large a change at every position), `random_units` (as many others), `sham_position` (the
    change moved by half the map; not at flat taps), `wrong_entity` (the next entity's edit), and the upper bounds
    `entity_moved` and `entity_recoloured` (the entity that the unedited agent prefers is put where the asked one lies,
    by exchange of places or of colours; touching what lies there counts; the gem has no colour).
    `retarget/ENTITY/preference`: how often the unedited agent takes it first, over all mazes that have it;
    `retarget/ENTITY/no_touch`: of the edit; `retarget/ENTITY/finished`: of the successes, how many reach the gem once
    the edit is lifted; `retarget/ENTITY/units`, `size`, `norm`; `kl`, `action_agreement` and `value_error` against the
    unedited agent on its natural play of validation levels; `retarget/levels`, `retarget/ENTITY/counted`,
    `retarget/competence`: of all mazes, those that the unedited agent finishes, and `retarget/touched`, those in
    which it touches anything.

    Args:
        agent: path of the agent's weights.
        tap: where edits are searched.
        edits: files of edits found before (on this agent or another), instead of a search; one an entity.
        num_levels: mazes, one a test level.
        distances: moves to the entities, least and greatest.
        search: how edits are searched for.
        max_steps: without a touch until here is a failure.
        finish_steps: steps that finishing may take.
        comparison_levels: validation levels on which the policies are compared.
        distribution_mode: of heist.
        seed: of mazes, noise and controls.
        num_environments: mazes played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that cannot be edited, files that do not make one
            edit for each entity, or numbers below 1.
    """

    def __init__(
        self,
        agent: str,
        tap: str = "pool1",
        edits: list[str] | None = None,
        num_levels: int = 1_600,
        distances: tuple[int, int] = (2, 6),
        search: SearchSettings | None = None,
        max_steps: int = 100,
        finish_steps: int = 500,
        comparison_levels: int = 64,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = "bf16",
        device: str = "auto",
    ) -> None:
        self.search = SearchSettings() if search is None else search
        numbers = {
            "max_steps": max_steps, "finish_steps": finish_steps, "num_environments": num_environments,
            "search.mazes": self.search.mazes, "search.steps": self.search.steps, "search.places": self.search.places,
            "search.played": self.search.played, "search.kernel": self.search.kernel,
        }  # fmt: skip
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} {number} must be at least 1")
        self.levels = held_out_levels("test", num_levels)
        self.compared = held_out_levels("validation", comparison_levels)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.agent = load_agent(agent).to(where)
        self.agent.check_taps([tap])
        if tap.split(".")[0] in ("logits", "value"):
            raise ValueError(f"tap {tap!r} is none to retarget at: choose one inside the network")
        self.tap = tap
        self.loaded: dict[str, tuple[str, TapEdit]] = {}
        if edits is not None:
            loaded = [load_edit(path, self.agent) for path in edits]
            if sorted(entity for entity, _, _ in loaded) != sorted(ASKED):
                raise ValueError(f"edits must be one file for each of {', '.join(ASKED)}")
            self.loaded = {entity: (tap, edit.to(where)) for entity, tap, edit in loaded}
        self.distances, self.max_steps, self.finish_steps = distances, max_steps, finish_steps
        self.seed, self.num_environments = seed, num_environments
        self.precision: Precision = precision

    def run(self) -> Report:
        """Search, play, count."""
        frontier = {} if self.loaded else {entity: self._search(entity) for entity in ASKED}
        chosen = {entity: smallest(found, self.search.keep) for entity, found in frontier.items()}
        edits = self.loaded or {entity: (self.tap, found.edit) for entity, found in chosen.items()}
        mazes = self._mazes(first_states(self.levels, self.settings), self.seed)
        states = [maze.to_bytes() for maze, _ in mazes]
        clean = self._play(states, (), "unedited")
        again = self._play(states, (), "unedited, other noise", self.seed + 1)
        ends = play_to_end(
            self.agent, states, settings=self.settings, seed=self.seed, num_environments=self.num_environments,
            max_steps=self.finish_steps, precision=self.precision, progress="unedited to the end",
        )  # fmt: skip
        intervals = {
            "retarget/competence": wilson_interval(int(ends.sum()), len(ends)),
            "retarget/touched": wilson_interval(int((clean.touched != NOTHING).sum()), len(ends)),
        }
        intervals |= self._compare(edits)
        arms: dict[str, dict[str, Interval]] = {}
        summary = {"retarget/levels": float(len(states))}
        for place, entity in enumerate(ASKED):
            asked = ENTITIES.index(entity)
            has = np.array([entity in pair for _, pair in mazes])
            rows = np.flatnonzero(has & (clean.touched != asked) & (clean.touched != NOTHING))
            summary[f"retarget/{entity}/counted"] = float(len(rows))
            tap, edit = edits[entity]
            summary |= {f"retarget/{entity}/units": float(len(edit.units))}
            if chosen:
                summary |= {f"retarget/{entity}/norm": chosen[entity].norm}
                summary |= {f"retarget/{entity}/size": float(chosen[entity].size)}
            if has.any():
                took = int((clean.touched[has] == asked).sum())
                intervals[f"retarget/{entity}/preference"] = wilson_interval(took, int(has.sum()))
            if len(rows) == 0:
                continue
            some = [states[row] for row in rows]
            wrong = edits[ASKED[(place + 1) % len(ASKED)]]
            trials: dict[str, list[Edit]] = {
                "success": [(tap, edit)],
                "random_direction": [(tap, RandomDirection(edit, self.seed))],
                "random_units": [(tap, on_random_units(edit, self.seed))],
                "wrong_entity": [wrong],
            }
            if len(self.agent.taps[tap]) == 3:
                trials["sham_position"] = [(tap, ShamPosition(edit))]
            played = {arm: self._play(some, trial, f"{entity}, {arm}") for arm, trial in trials.items()}
            hits = {arm: one.touched == asked for arm, one in played.items()} | {"none": again.touched[rows] == asked}
            hits |= self._upper_bounds([mazes[row][0] for row in rows], entity, clean.touched[rows])
            arms[entity] = {arm: wilson_interval(int(hit.sum()), len(hit)) for arm, hit in hits.items()}
            intervals |= {f"retarget/{entity}/{arm}": interval for arm, interval in arms[entity].items()}
            missed = int((played["success"].touched == NOTHING).sum())
            intervals[f"retarget/{entity}/no_touch"] = wilson_interval(missed, len(rows))
            if asked != GEM and hits["success"].any():
                lifted = [played["success"].after[row] for row in np.flatnonzero(hits["success"])]
                finished = play_to_end(
                    self.agent, lifted, settings=self.settings, seed=self.seed + 1, max_steps=self.finish_steps,
                    num_environments=self.num_environments, precision=self.precision, progress=f"{entity}, finishing",
                )  # fmt: skip
                intervals[f"retarget/{entity}/finished"] = wilson_interval(int(finished.sum()), len(finished))
        tables = {"arms": arm_table(arms), "preference": preference_table([pair for _, pair in mazes], clean.touched)}
        if frontier:
            tables["frontier"] = frontier_table(frontier, self.tap)
        counted = {entity: int(summary[f"retarget/{entity}/counted"]) for entity in ASKED}
        return Report(
            summary | join_metrics(intervals),
            tables,
            {"arms": draw_arms(arms, counted, self.tap)},
            weights={
                f"edit_{entity}": (found.edit, {
                    "kind": type(found.edit).__name__, "agent_hash": self.agent.weights_hash, "tap": self.tap,
                    "entity": entity,
                })
                for entity, found in chosen.items()
            },
        )  # fmt: skip

    def _search(self, entity: str) -> list[FoundEdit]:
        """The frontier of one entity, on mazes of training levels that hold it."""
        search, tuning = self.search, self.search.mazes
        count = tuning + max(1, tuning // 4)
        start = TRAINING_START + ASKED.index(entity) * count
        bases = first_states(range(start, start + count), self.settings)
        mazes = [maze for maze, _ in self._mazes(bases, self.seed, entity)]
        rng, actions = np.random.default_rng(self.seed), self.agent.taps["logits"][0]
        tuned, validated = mazes[:tuning], mazes[tuning:]
        parts = [asked_moves(part, entity, rng, self.settings, actions, search.places) for part in (tuned, validated)]
        if search.kind == "channels":
            found = search_edit(
                self.agent, self.tap, *parts, unit_counts=search.unit_counts, steps=search.steps,
                sparsity=search.sparsity, seed=self.seed,
            )  # fmt: skip
        else:
            units = self.agent.taps[self.tap][0]
            fresh: dict[int, TapEdit] = {
                size: MixingEdit(units, size, self.seed)
                if search.kind == "mixing"
                else RepaintEdit(units, size, search.kernel, self.seed)
                for size in search.unit_counts
            }
            times = itertools.count(self.seed + 1)

            def play(edit: TapEdit) -> AskedMoves:
                seed = next(times)
                some = np.random.default_rng([seed, self.seed]).permutation(tuning)[: search.played]
                return own_moves(
                    self.agent, [(self.tap, edit)], [tuned[row] for row in some], entity, settings=self.settings,
                    seed=seed, num_environments=self.num_environments, precision=self.precision,
                )  # fmt: skip

            found = list(
                search_learned(
                    self.agent, self.tap, fresh, *parts, steps=search.steps, seed=self.seed, play=play,
                    rounds=search.rounds, precision=self.precision, progress=entity,
                )
            )  # fmt: skip
        states = [maze.to_bytes() for maze in validated]
        asked = ENTITIES.index(entity)
        judged = []
        for one in found:
            played = self._play(states, [(self.tap, one.edit)], f"{entity}, size {one.size}")
            judged.append(dataclasses.replace(one, reached=float((played.touched == asked).mean())))
        return judged

    def _mazes(self, bases: list[bytes], seed: int, entity: str | None = None) -> list[tuple[State, tuple[str, str]]]:
        """A maze for each level with two entities to choose from, all pairs (with the one entity) in turn."""
        pairs = [pair for pair in combinations(ASKED, 2) if entity is None or entity in pair]
        made: list[tuple[State, tuple[str, str]]] = []
        for number, data in enumerate(bases):
            base, pair = State.from_bytes(data), pairs[number % len(pairs)]
            rng = np.random.default_rng([seed, base.level_seed])
            made.append((choice_maze(base, rng, entities=pair, distances=self.distances), pair))
        return made

    def _play(self, states: list[bytes], edits: list[Edit] | tuple[()], title: str, seed: int | None = None) -> Choices:
        return play_choices(
            self.agent, states, settings=self.settings, edits=edits, seed=self.seed if seed is None else seed,
            num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision, progress=title,
        )  # fmt: skip

    def _upper_bounds(
        self, mazes: list[State], entity: str, preferred: np.ndarray
    ) -> dict[str, Bool[np.ndarray, " n"]]:
        """The preferred entity really lies where the asked one lay: does the unedited agent go there?"""
        names = [ENTITIES[index] for index in preferred]
        moved = [swap_entities(maze, entity, name).to_bytes() for maze, name in zip(mazes, names, strict=True)]
        bounds = {"entity_moved": self._play(moved, (), f"{entity}, moved").touched == preferred}
        keys = [row for row, name in enumerate(names) if "gem" not in (entity, name)]
        if keys:
            recoloured = []
            for row in keys:
                one, other = entity.split("_")[0], names[row].split("_")[0]
                recoloured.append(recolour(mazes[row], {one: other, other: one}).to_bytes())
            played = self._play(recoloured, (), f"{entity}, recoloured")
            bounds["entity_recoloured"] = played.touched == preferred[keys]
        return bounds

    def _compare(self, edits: Mapping[str, Edit]) -> dict[str, Interval]:
        """How far each edit changes the policy on natural play, where nobody asked for anything."""
        comparisons = PolicyComparisons(
            self.agent, {name: [edit] for name, edit in edits.items()}, self.compared, self.precision, every=4
        )
        play_episodes(
            self.agent, self.compared, settings=self.settings, seed=self.seed, max_steps=self.max_steps,
            num_environments=self.num_environments, precision=self.precision, observer=comparisons,
        )  # fmt: skip
        return {
            f"retarget/{entity}/{name}": interval
            for entity, comparison in comparisons.of.items()
            for name, interval in comparison.intervals().items()
        }
