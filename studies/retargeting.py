"""Can an agent be sent after another entity? An edit searched on tuning mazes, and all its controls, on others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int

from environments import EnvironmentSettings, State, held_out_levels
from environments.heist import ENTITIES, recolour, swap_entities
from environments.heist.asked import label_asked
from interpretability.choices import GEM, NOTHING, Choices, play_choices, play_to_end
from interpretability.edit_search import smallest
from interpretability.episodes import first_states, play_episodes
from interpretability.films import Film
from interpretability.policy_comparison import PolicyComparisons
from interpretability.statistics import Interval, difference_of_means, join_metrics, paired_bootstrap, wilson_interval
from networks import Edit, Precision, load_agent
from networks.channel_edit import RandomDirection, ShamPosition, TapEdit, load_edit, on_random_units
from networks.weights import hash_tensors
from studies.arguments import check_at_least_one
from studies.report import Report, Study, Table
from studies.retargeting_goal import choice_views, perception_and_goal
from studies.retargeting_page import choice_film, retargeting_page
from studies.retargeting_search import ASKED, EditSearch, Kept, SearchSettings, choice_mazes
from studies.retargeting_tables import (
    arm_table,
    direction_table,
    draw_arms,
    draw_frontier,
    frontier_table,
    preference_table,
)
from studies.subject import choose_device

_FILMED: Final = 3


class Retargeting(Study):
    """Sends an agent after each entity by a fixed edit, and does with every control arm what it does with the edit.

    In each maze two of the entities can be fetched at once, in different directions. An edit is a function of the
    asked entity and its tap's activation alone. It counts only where the unedited agent, with the same noise, touches
    another entity first; touching nothing within `max_steps` is a failure.

    Writes the page `pages/retargeting.html`, films of the first counted mazes without and with each edit, figures,
    tables and the edits. Summary, with 95 % Wilson bounds over mazes: `retarget/ENTITY/success` (the edit),
    `retarget/ENTITY/ARM`, over the same mazes: `none` (the unedited agent with other noise: how often it would have
    gone there anyway), `random_direction` (as large a change at every position), `random_units` (as many others),
    `sham_position` (the change moved by half the map; not at flat taps), `wrong_entity` (the next entity's edit), and
    the upper bounds `entity_moved` and `entity_recoloured` (the entity that the unedited agent prefers is put where the
    asked one lies, by exchange of places or of colours; touching what lies there counts; the gem has no colour).
    `retarget/ENTITY/minus_ARM`: the edit's share less the arm's, with bounds of a bootstrap over the mazes of both;
    `retarget/ENTITY/preference`: how often the unedited agent takes it first, over all mazes that have it;
    `retarget/ENTITY/no_touch`: of the edit; `retarget/ENTITY/finished`: of the successes, how many reach the gem once
    the edit is lifted; `retarget/ENTITY/units`, `size`, `norm`; `kl`, `action_agreement` and `value_error` against the
    unedited agent on its natural play of validation levels; `retarget/levels`, `retarget/ENTITY/counted`,
    `retarget/competence`: of all mazes, those that the unedited agent finishes, and `retarget/touched`, those in which
    it touches anything.

    Whether an edit changes what the agent sees or what it wants is read by probes fitted on untouched play:
    `retarget/ENTITY/seen`, the share of cells whose key, gem or emptiness a linear probe of `conv3a` still reads, and
    `retarget/ENTITY/pursued`, the share of frames in which one of `fc1` reads the asked entity as the next to be
    touched; both with `_before` for the unedited agent (see `perception_and_goal`). For agents with these taps, and
    edits at or before them.

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
        probe_mazes: mazes of validation levels on which probes are fitted, and as many on which they are read.
        distribution_mode: of heist.
        seed: of mazes, noise and controls.
        num_environments: mazes played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.
        cache_dir: folder in which edits and arms are kept as they are done: the same command goes on from there.

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
        probe_mazes: int = 400,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = "bf16",
        device: str = "auto",
        cache_dir: str = ".cache/retargeting",
    ) -> None:
        self.search = SearchSettings() if search is None else search
        numbers = {
            "max_steps": max_steps,
            "finish_steps": finish_steps,
            "num_environments": num_environments,
            "probe_mazes": probe_mazes,
        }
        check_at_least_one(numbers)
        self.levels = held_out_levels("test", num_levels)
        self.compared = held_out_levels("validation", comparison_levels)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        where = choose_device(device)
        self.agent, self.name = load_agent(agent).to(where), Path(agent).name
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
        self.cache_dir, self.probe_mazes = cache_dir, probe_mazes

    def run(self) -> Report:
        """Search, play, count."""
        search = EditSearch(
            self.agent, self.tap, self.search, environment=self.settings, distances=self.distances, seed=self.seed,
            max_steps=self.max_steps, num_environments=self.num_environments, precision=self.precision,
            cache_dir=self.cache_dir,
        )  # fmt: skip
        frontier = {} if self.loaded else {entity: search(entity) for entity in ASKED}
        chosen = {entity: smallest(found, self.search.keep) for entity, found in frontier.items()}
        edits = self.loaded or {entity: (self.tap, found.edit) for entity, found in chosen.items()}
        mazes = choice_mazes(first_states(self.levels, self.settings), self.seed, self.distances)
        kept = Kept(self.cache_dir, self._description(edits))
        states = [maze.to_bytes() for maze, _ in mazes]
        touched = np.array(kept.numbers("unedited", self._arm, states, "unedited")["touched"])
        other_noise = kept.numbers("other_noise", self._arm, states, "other_noise", (), self.seed + 1)["touched"]
        ends = kept.numbers("unedited_ends", self._ends, states)["finished"]
        intervals = {
            "retarget/competence": wilson_interval(sum(ends), len(states)),
            "retarget/touched": wilson_interval(int((touched != NOTHING).sum()), len(states)),
        }
        intervals |= self._compare(edits)
        seen, perception = self._perception(edits)
        intervals |= seen
        arms: dict[str, dict[str, Interval]] = {}
        differences: dict[str, dict[str, Interval]] = {}
        outcomes: dict[str, dict[str, np.ndarray]] = {}
        directions: dict[str, np.ndarray] = {}
        films: dict[str, Film] = {}
        summary = {"retarget/levels": float(len(states))}
        for entity in ASKED:
            asked = ENTITIES.index(entity)
            has = np.array([entity in pair for _, pair in mazes])
            rows = np.flatnonzero(has & (touched != asked) & (touched != NOTHING))
            summary[f"retarget/{entity}/counted"] = float(len(rows))
            summary[f"retarget/{entity}/units"] = float(len(edits[entity][1].units))
            if chosen:
                summary[f"retarget/{entity}/norm"] = chosen[entity].norm
                summary[f"retarget/{entity}/size"] = float(chosen[entity].size)
            if has.any():
                took = int((touched[has] == asked).sum())
                intervals[f"retarget/{entity}/preference"] = wilson_interval(took, int(has.sum()))
            if len(rows) == 0:
                continue
            some = [states[row] for row in rows]
            hits = {"none": np.array(other_noise)[rows] == asked}
            for arm, trial in self._trials(entity, edits).items():
                done = kept.numbers(f"{entity}_{arm}", self._arm, some, f"{entity}, {arm}", trial, self.seed)
                hits[arm] = np.array(done["touched"]) == asked
                if arm == "success":
                    missed = done["touched"].count(NOTHING)
                    intervals[f"retarget/{entity}/no_touch"] = wilson_interval(missed, len(rows))
            if asked != GEM and hits["success"].any():
                reached = [state for state, hit in zip(some, hits["success"], strict=True) if hit]
                finished = kept.numbers(f"{entity}_finished", self._lifted, reached, edits[entity], asked)["finished"]
                if finished:
                    intervals[f"retarget/{entity}/finished"] = wilson_interval(sum(finished), len(finished))
            there = [mazes[row][0] for row in rows]
            bounds = kept.numbers(f"{entity}_bounds", self._upper_bounds, there, entity, touched[rows])
            hits |= {arm: np.array(one, dtype=bool) for arm, one in bounds.items()}
            arms[entity] = {arm: wilson_interval(int(hit.sum()), len(hit)) for arm, hit in hits.items()}
            differences[entity] = {
                arm: paired_bootstrap(difference_of_means, [hits["success"], hit], seed=self.seed)
                for arm, hit in hits.items()
                if arm != "success" and len(hit) == len(rows)
            }
            intervals |= {f"retarget/{entity}/{arm}": interval for arm, interval in arms[entity].items()}
            intervals |= {f"retarget/{entity}/minus_{arm}": added for arm, added in differences[entity].items()}
            outcomes[entity], directions[entity] = hits, label_asked(there, entity).direction
            films[entity] = self._film(some[:_FILMED], edits[entity])
        tables = {
            "arms": arm_table(arms, differences),
            "directions": direction_table(directions, outcomes),
            "perception": perception,
            "preference": preference_table([pair for _, pair in mazes], touched),
        }
        figures = {
            "arms": draw_arms(arms, {name: int(summary[f"retarget/{name}/counted"]) for name in ASKED}, self.tap)
        }
        if frontier:
            tables["frontier"] = frontier_table(frontier, self.tap)
            figures["frontier"] = draw_frontier(frontier, self.tap)
        summary |= join_metrics(intervals)
        return Report(
            summary,
            tables,
            figures,
            films,
            {"retargeting": retargeting_page(self.name, self.tap, summary, tables, figures, list(films))},
            weights={f"edit_{entity}": (one.edit, search.metadata(entity, one.edit)) for entity, one in chosen.items()},
        )

    def _description(self, edits: Mapping[str, tuple[str, TapEdit]]) -> dict[str, Any]:
        """All that decides what is touched."""
        return {
            "agent": self.agent.weights_hash, "levels": [int(level) for level in self.levels], "seed": self.seed,
            "edits": {name: [tap, hash_tensors(edit.state_dict())] for name, (tap, edit) in edits.items()},
            "distances": self.distances, "steps": [self.max_steps, self.finish_steps],
            "mode": self.settings.distribution_mode, "environments": self.num_environments,
            "precision": self.precision,
        }  # fmt: skip

    def _trials(self, entity: str, edits: Mapping[str, tuple[str, TapEdit]]) -> dict[str, list[Edit]]:
        """The edit and its controls."""
        tap, edit = edits[entity]
        trials: dict[str, list[Edit]] = {
            "success": [(tap, edit)],
            "random_direction": [(tap, RandomDirection(edit, self.seed))],
            "random_units": [(tap, on_random_units(edit, self.seed))],
            "wrong_entity": [edits[ASKED[(ASKED.index(entity) + 1) % len(ASKED)]]],
        }
        if len(self.agent.taps[tap]) == 3:
            trials["sham_position"] = [(tap, ShamPosition(edit))]
        return trials

    def _arm(
        self, states: list[bytes], title: str, trial: Sequence[Edit] = (), seed: int | None = None
    ) -> dict[str, list[int]]:
        """What is touched first."""
        return {"touched": self._play(states, trial, title, seed).touched.tolist()}

    def _lifted(self, states: list[bytes], edit: Edit, asked: int) -> dict[str, list[int]]:
        """Whether the agent finishes once the edit is lifted after it touched the asked key.

        Played in other company than before, a close choice may tip otherwise in bf16: such mazes are left out.
        """
        played = self._play(states, [edit], "to be finished")
        lifted = [state for state, touched in zip(played.after, played.touched, strict=True) if touched == asked]
        return self._ends(lifted, self.seed + 1)

    def _ends(self, states: list[bytes], seed: int | None = None) -> dict[str, list[int]]:
        """Whether the unedited agent reaches the gem from each state."""
        ended = play_to_end(
            self.agent, states, settings=self.settings, seed=self.seed if seed is None else seed,
            num_environments=self.num_environments, max_steps=self.finish_steps, precision=self.precision,
            progress="to the end",
        )  # fmt: skip
        return {"finished": ended.astype(int).tolist()}

    def _perception(self, edits: Mapping[str, Edit]) -> tuple[dict[str, Interval], Table]:
        """What probes read with each edit; fitted and tested on mazes of validation levels."""
        levels = held_out_levels("validation", 2 * self.probe_mazes)
        mazes = choice_mazes(first_states(levels, self.settings), self.seed, self.distances)
        states = [maze.to_bytes() for maze, _ in mazes]
        fitted, tested = (
            choice_views(
                self.agent, part, settings=self.settings, seed=self.seed, num_environments=self.num_environments,
                max_steps=self.max_steps, precision=self.precision,
            )
            for part in (states[: self.probe_mazes], states[self.probe_mazes :])
        )  # fmt: skip
        return perception_and_goal(self.agent, fitted, tested, edits)

    def _film(self, states: list[bytes], edit: Edit) -> Film:
        """The first counted mazes without and with the edit."""
        played = {"unedited": self._play(states, (), "film"), "edited": self._play(states, [edit], "film")}
        return choice_film(states, played, self.settings)

    def _play(self, states: list[bytes], edits: Sequence[Edit], title: str, seed: int | None = None) -> Choices:
        return play_choices(
            self.agent, states, settings=self.settings, edits=edits, seed=self.seed if seed is None else seed,
            num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision, progress=title,
        )  # fmt: skip

    def _upper_bounds(self, mazes: list[State], entity: str, preferred: Int[np.ndarray, " n"]) -> dict[str, list[int]]:
        """The preferred entity really lies where the asked one lay: does the unedited agent go there?"""
        names = [ENTITIES[index] for index in preferred]
        moved = [swap_entities(maze, entity, name).to_bytes() for maze, name in zip(mazes, names, strict=True)]
        played = self._play(moved, (), f"{entity}, moved")
        bounds = {"entity_moved": (played.touched == preferred).astype(int).tolist()}
        keys = [row for row, name in enumerate(names) if "gem" not in (entity, name)]
        if keys:
            recoloured = []
            for row in keys:
                one, other = entity.split("_")[0], names[row].split("_")[0]
                recoloured.append(recolour(mazes[row], {one: other, other: one}).to_bytes())
            played = self._play(recoloured, (), f"{entity}, recoloured")
            bounds["entity_recoloured"] = (played.touched == preferred[keys]).astype(int).tolist()
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
