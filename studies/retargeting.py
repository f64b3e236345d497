"""Can an agent be sent after another entity? An edit searched on tuning mazes, and all its controls, on others."""

import math
from pathlib import Path
from typing import Final, Literal

import numpy as np
from torch import Tensor, nn

from environments import EnvironmentSettings, held_out_levels
from environments.heist import ENTITIES
from environments.heist.asked import label_asked
from interpretability.asked_moves import asked_moves
from interpretability.choice_film import choice_film
from interpretability.choices import GEM, NOTHING
from interpretability.edit_search import NORM_FRAMES, changed_outside, earliest, peaks_inside
from interpretability.episodes import first_states, play_episodes
from interpretability.films import Film
from interpretability.perception import Views
from interpretability.policy_comparison import PolicyComparisons
from interpretability.statistics import Interval, difference_of_means, join_metrics, paired_bootstrap, wilson_interval
from networks import DEFAULT_PRECISION, Precision, load_agent
from networks.channel_edit import TapEdit, load_edit
from studies.arguments import check_at_least_one, check_distances, check_not_negative, check_writable
from studies.report import Report, Study, Table
from studies.retargeting_arms import Outcome, RetargetingArms
from studies.retargeting_goal import check_probe_taps, choice_views, perception_and_goal
from studies.retargeting_page import retargeting_page
from studies.retargeting_search import ASKED, EditSearch, SearchSettings, choice_mazes
from studies.retargeting_tables import (
    arm_table,
    direction_table,
    draw_arms,
    draw_frontier,
    edit_table,
    frontier_table,
    in_words,
    level_table,
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
    `sham_position` (the change moved by half the map; not at flat taps), `wrong_entity` (the next entity's edit),
    `random_agent` (an agent of the same architecture with random weights, in the same mazes), and the upper bounds
    `entity_moved` and `entity_recoloured` (the entity that the unedited agent prefers is put where the asked one lies,
    by exchange of places or of colours; touching what lies there counts; the gem has no colour).
    `retarget/ENTITY/minus_ARM`: the edit's share less the arm's, with bounds of a bootstrap over the mazes of both;
    `retarget/ENTITY/preference`: how often the unedited agent takes it first, over all mazes that have it;
    `retarget/ENTITY/no_touch`: of the edit; `retarget/ENTITY/finished`: of the successes, how many reach the gem once
    the edit is lifted; `retarget/ENTITY/units`, `size`, `norm`; `outside` (of edits of maps: the part of the squared
    change that lies outside the asked entity's cell and half a cell around it, the player being anywhere); `kl`,
    `action_agreement` and `value_error` against the unedited agent on its natural play of validation levels;
    `retarget/levels`, `retarget/ENTITY/counted`, `retarget/competence`: of all mazes, those that the unedited agent
    finishes, and `retarget/touched`, those in which it touches anything.

    Whether an edit changes what the agent sees or what it wants is read by probes fitted on untouched play:
    `retarget/ENTITY/seen/TAP`, the share of cells whose key, gem or emptiness a linear probe of each map tap still
    reads (`seen_others/TAP`: without the asked entity's cell), and `retarget/ENTITY/pursued`, the share of frames in
    which one of `goal_tap` reads the asked entity as the next to be touched. `seen_across/TAP`,
    `seen_across_others/TAP` and `pursued_across` are of probes fitted also on play with the other entities' edits, in
    which what lies somewhere and what the agent makes of it no longer go together. All have `_before` for the unedited
    agent and `_random_direction` for that control (see `perception_and_goal`). Left out, as not measurable: the first
    for edits behind the map, the second for those at `goal_tap` or behind. With `search.keep_seen` above 0 edits are
    searched that leave what is read of `map_taps` as it is, with `search.keep_outside` edits of the asked entity alone.

    Args:
        agent: path of the agent's weights.
        tap: where edits are searched; those in files have their own. Several: `search.taps`.
        edits: files of edits found before (on this agent or another), instead of a search; one an entity.
        num_levels: mazes, one a test level.
        asked: entities that are asked for; null for all. Mazes without them are left out, so that many levels may be
            looked through for one that is seldom passed by. Edits of all entities are needed nevertheless.
        distances: moves to the entities, least and greatest.
        search: how edits are searched for.
        max_steps: without a touch until here is a failure.
        finish_steps: steps that finishing may take.
        comparison_levels: validation levels on which the policies are compared.
        probe_mazes: mazes of validation levels on which probes are fitted, and as many on which they are read.
        map_taps: maps whose cells a probe each reads.
        goal_tap: a flat tap of which a probe reads what is pursued.
        distribution_mode: of heist.
        seed: of mazes, noise and controls.
        num_environments: mazes played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.
        cache_dir: folder in which edits and arms are kept as they are done: the same command goes on from there.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that cannot be edited or read, files that do not make
            one edit for each entity, an entity that cannot be asked for, a search that does not fit its tap, distances
            that do not rise, numbers below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        tap: str = "pool1",
        edits: list[str] | None = None,
        num_levels: int = 1_600,
        asked: tuple[str, ...] | None = None,
        distances: tuple[int, int] = (2, 6),
        search: SearchSettings = SearchSettings(),  # noqa: B008
        max_steps: int = 100,
        finish_steps: int = 500,
        comparison_levels: int = 64,
        probe_mazes: int = 400,
        map_taps: tuple[str, ...] = ("conv2b", "conv3a"),
        goal_tap: str = "fc1",
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
        cache_dir: str = ".cache/retargeting",
    ) -> None:
        self.search = search
        numbers = {
            "max_steps": max_steps,
            "finish_steps": finish_steps,
            "num_environments": num_environments,
            "probe_mazes": probe_mazes,
        }
        check_at_least_one(numbers)
        check_not_negative({"seed": seed})
        check_distances(distances)
        if asked is not None and (not asked or set(asked) - set(ASKED)):
            raise ValueError(f"asked {list(asked)}: name some of {', '.join(ASKED)}, or null for all")
        self.asked = [entity for entity in ASKED if asked is None or entity in asked]
        self.levels = held_out_levels("test", num_levels)
        self.compared = held_out_levels("validation", comparison_levels)
        self.probed = held_out_levels("validation", 2 * probe_mazes)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        where = choose_device(device)
        self.agent, self.name = load_agent(agent).to(where), Path(agent).name
        self.loaded: dict[str, tuple[str, TapEdit]] = {}
        if edits is not None:
            loaded = [load_edit(path, self.agent) for path in edits]
            if sorted(entity for entity, _, _ in loaded) != sorted(ASKED):
                raise ValueError(f"edits must be one file for each of {', '.join(ASKED)}")
            known = {entity: (edited, edit.to(where)) for entity, edited, edit in loaded}
            self.loaded = {entity: known[entity] for entity in ASKED}
        taps = [tap] if self.search.taps is None else self.search.taps
        self.agent.check_taps([edited for edited, _ in self.loaded.values()] or taps, inner=True)
        taps = [name for name in self.agent.taps if name in taps]  # in order of computation
        check_probe_taps(self.agent, map_taps, goal_tap)
        self.distances, self.max_steps, self.finish_steps = distances, max_steps, finish_steps
        self.seed, self.num_environments = seed, num_environments
        self.precision: Precision = precision
        self.cache_dir, self.probe_mazes = cache_dir, probe_mazes
        self.map_taps, self.goal_tap = map_taps, goal_tap
        self.searches = [] if self.loaded else [self._search(name) for name in taps]
        for one in self.searches:
            one.check()
        check_writable("cache_dir", cache_dir)

    def run(self) -> Report:
        """Search, play, count.

        Raises:
            ValueError: no maze holds an entity that is asked for.
        """
        drawn = choice_mazes(first_states(self.levels, self.settings), self.seed, self.distances)
        mazes = [(maze, pair) for maze, pair in drawn if set(pair) & set(self.asked)]
        if not mazes:
            raise ValueError(f"num_levels {len(self.levels)}: no maze holds {' or '.join(self.asked)}: raise it")
        frontier = {entity: {search.tap: search(entity) for search in self.searches} for entity in ASKED}
        edits = self.loaded
        if self.searches:
            chosen = {entity: earliest(found, self.search.keep) for entity, found in frontier.items()}
            edits = {entity: (tap, found.edit) for entity, (tap, found) in chosen.items()}
            measured = {entity: (found.size, found.norm) for entity, (_, found) in chosen.items()}
        else:
            measured = {entity: self._search(tap).measure(entity, edit) for entity, (tap, edit) in edits.items()}
        taps = in_words({entity: [tap] for entity, (tap, _) in edits.items()})
        arms = RetargetingArms(
            self.agent, edits, [maze for maze, _ in mazes], settings=self.settings, seed=self.seed,
            max_steps=self.max_steps, finish_steps=self.finish_steps, num_environments=self.num_environments,
            precision=self.precision, cache_dir=self.cache_dir,
        )  # fmt: skip
        touched, ends = arms.unedited(), arms.ends()
        intervals = {
            "retarget/competence": wilson_interval(sum(ends), len(mazes)),
            "retarget/touched": wilson_interval(int((touched != NOTHING).sum()), len(mazes)),
        }
        intervals |= self._compare({entity: edits[entity] for entity in self.asked})
        seen, perception = self._perception(edits)
        intervals |= seen
        outcomes: dict[str, dict[str, Outcome]] = {}
        differences: dict[str, dict[str, Interval]] = {}
        directions: dict[str, np.ndarray] = {}
        peaks: dict[str, tuple[Tensor, Tensor]] = {}
        films: dict[str, Film] = {}
        summary = {"retarget/levels": float(len(mazes))}
        for entity in self.asked:
            asked, (tap, edit), (size, norm) = ENTITIES.index(entity), edits[entity], measured[entity]
            has = np.array([entity in pair for _, pair in mazes])
            counted = np.flatnonzero(has & (touched != asked) & (touched != NOTHING))
            known = {"counted": len(counted), "units": len(edit.units), "size": size, "norm": norm}
            summary |= {f"retarget/{entity}/{name}": float(value) for name, value in known.items()}
            if has.any() and len(self.agent.taps[tap]) == 3:
                moves = asked_moves(
                    [mazes[row][0] for row in np.flatnonzero(has)[:NORM_FRAMES]], entity,
                    np.random.default_rng(self.seed), self.settings, self.agent.taps["logits"][0],
                )  # fmt: skip
                outside = changed_outside(self.agent, tap, edit, moves)
                peaks[entity] = peaks_inside(self.agent, tap, edit, moves)
                if not math.isnan(outside):
                    summary[f"retarget/{entity}/outside"] = outside
            if has.any():
                took = int((touched[has] == asked).sum())
                intervals[f"retarget/{entity}/preference"] = wilson_interval(took, int(has.sum()))
            if len(counted) == 0:
                continue
            found = arms.outcomes(entity, counted, touched[counted])
            success = found["success"]
            intervals[f"retarget/{entity}/no_touch"] = wilson_interval(int(success.nothing.sum()), len(counted))
            finished = arms.finished(entity, counted[success.hit]) if asked != GEM and success.hit.any() else []
            if finished:
                intervals[f"retarget/{entity}/finished"] = wilson_interval(sum(finished), len(finished))
            outcomes[entity] = found
            differences[entity] = {
                arm: paired_bootstrap(difference_of_means, [success.hit[outcome.rows], outcome.hit], seed=self.seed)
                for arm, outcome in found.items()
                if arm != "success"
            }
            intervals |= {f"retarget/{entity}/{arm}": outcome.share for arm, outcome in found.items()}
            intervals |= {f"retarget/{entity}/minus_{arm}": added for arm, added in differences[entity].items()}
            directions[entity] = label_asked([mazes[row][0] for row in counted], entity).direction
            some = [arms.states[row] for row in counted[:_FILMED]]
            played = {"unedited": arms.play(some, (), "film"), "edited": arms.play(some, [(tap, edit)], "film")}
            films[entity] = choice_film(some, played, self.settings)
        tables = {
            "arms": arm_table(outcomes, differences),
            "directions": direction_table(directions, outcomes),
            "perception": perception,
            "preference": preference_table([pair for _, pair in mazes], touched),
        }
        figures = {"arms": draw_arms(outcomes, taps)}
        if self.searches:
            tables["frontier"] = frontier_table(frontier, self.search.judged)
            figures["frontier"] = draw_frontier(frontier)
        summary |= join_metrics(intervals)
        tables |= {"edits": edit_table(summary), "levels": level_table(peaks)}
        page = retargeting_page(self.name, taps, (self.map_taps, self.goal_tap), summary, tables, figures, list(films),
            kept_seen=bool(self.searches) and self.search.keep_seen > 0,
            kept_outside=bool(self.searches) and self.search.keep_outside > 0,
        )  # fmt: skip
        weights: dict[str, tuple[nn.Module, dict[str, str]]] = {
            f"edit_{entity}": (edit, self._search(tap).metadata(entity, edit))
            for entity, (tap, edit) in (edits.items() if self.searches else ())
        }
        return Report(summary, tables, figures, films, {"retargeting": page}, weights=weights)

    def _search(self, tap: str) -> EditSearch:
        return EditSearch(
            self.agent, tap, self.search, environment=self.settings, distances=self.distances, seed=self.seed,
            max_steps=self.max_steps, num_environments=self.num_environments, precision=self.precision,
            cache_dir=self.cache_dir, map_taps=self.map_taps,
        )  # fmt: skip

    def _perception(self, edits: dict[str, tuple[str, TapEdit]]) -> tuple[dict[str, Interval], Table]:
        """What probes read with each edit; fitted and tested on mazes of validation levels."""
        mazes = choice_mazes(first_states(self.probed, self.settings), self.seed, self.distances)
        states = [maze.to_bytes() for maze, _ in mazes]
        to_fit, to_test = states[: self.probe_mazes], states[self.probe_mazes :]

        def views(part: list[bytes], *changes: tuple[str, TapEdit]) -> Views:
            return choice_views(
                self.agent, part, settings=self.settings, seed=self.seed, num_environments=self.num_environments,
                max_steps=self.max_steps, precision=self.precision, edits=changes,
            )  # fmt: skip

        fitted = {"": views(to_fit)} | {entity: views(to_fit, edit) for entity, edit in edits.items()}
        pairs = [pair for _, pair in mazes[self.probe_mazes :]]
        return perception_and_goal(
            self.agent, fitted, views(to_test), pairs, edits, self.map_taps, self.goal_tap, self.seed, self.asked
        )

    def _compare(self, edits: dict[str, tuple[str, TapEdit]]) -> dict[str, Interval]:
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
