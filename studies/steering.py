"""Can the agent be sent after another entity along the directions that probes, means, latents or eigenfilters give?"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Final, Literal

import numpy as np
import torch
from torch import nn

from environments import EnvironmentSettings, held_out_levels, render_states
from environments.heist import ENTITIES
from interpretability.choice_film import choice_film
from interpretability.choices import Choices, play_choices
from interpretability.episodes import first_states, play_episodes
from interpretability.films import Film
from interpretability.patching import record_taps
from interpretability.perception import SEEN, Views
from interpretability.policy_comparison import PolicyComparisons
from interpretability.statistics import Interval, join_metrics, wilson_interval
from interpretability.steering import OPERATIONS, EditOfEach, SteerEdit, layer_behind, operation
from networks import DEFAULT_PRECISION, Edit, Precision, load_agent, load_sae
from networks.channel_edit import RandomDirection
from studies.arguments import check_at_least_one, check_distances, check_not_empty, check_not_negative
from studies.report import Report, Study
from studies.retargeting_goal import choice_views
from studies.retargeting_search import choice_mazes
from studies.steering_mazes import Mazes, preferred_entities
from studies.steering_page import Dose, Method, draw_doses, steering_page, steering_tables
from studies.steering_sources import find_sources
from studies.subject import choose_device

_BATCH: Final = 256
_FILMED: Final = 3


class Steering(Study):
    """Steers the agent to each of blue, green and red key and gem by directions of taps, the strength tuned on
    validation levels, and counts on test levels how often it touches the asked entity first where the unedited agent,
    with the same seed and noise, touches another.

    Mazes and counting are those of `Retargeting`. A reading says in 0 to 1 where each entity is (at a flat tap: whether
    it will be touched next), and is a least-squares probe fitted on untouched play, or the autoencoder's best latent.
    Directions: `probe` (the shortest change that the probe reads as the entity and nothing else), `means` (difference
    of means), `latent` (what that latent adds), and, of a bilinear agent, at taps that a bilinear layer reads directly,
    `eigen` (the eigenfilter of that layer that does most towards its output's probe of the entity). Operations: `add`
    the asked entity's everywhere, `raise` it where it is read, `remove` the others where they are read, `swap` the
    asked one and the one that the unedited agent prefers, each written where the other is read. An edit is thus fixed
    by the entity and sees only its tap.

    Controls, in the same mazes: `random_direction`, as large a change at every position in one random direction;
    `random_agent`, the same edit written by directions of the same kind and length found in an agent with random
    weights (for latents: its differences of means); `none`, the unedited agent with other noise. Success above them is
    what the direction itself does; a change of what is seen is not a change of what is wanted (`Retargeting` tells them
    apart by probes).

    Writes the page `pages/steering.html`, the tables `best`, `methods` and `doses`, the figure `doses`, and films of
    the first counted mazes with each entity's best method. Summary: `steering/TAP/SOURCE_OPERATION/ENTITY/success`,
    `.../random_direction` and `.../random_agent`, with 95 % Wilson bounds over mazes; `.../kl` and
    `.../action_agreement` with the unedited agent on natural play of validation levels, with 95 % bounds over levels;
    `.../strength` (chosen on validation levels) and `.../norm` (root mean square over positions);
    `steering/ENTITY/success` and so on, of the method that was best on validation levels; `steering/ENTITY/none`, with
    Wilson bounds; `steering/ENTITY/counted`, `steering/levels`.

    Args:
        agent: path of the agent's weights.
        taps: where it is steered.
        sae: path of an autoencoder of one of its taps, whose latents are used there; that tap is added.
        sources: of directions, `probe` and `means`; latents come with an autoencoder, eigenfilters with a bilinear
            agent, at taps that a bilinear layer reads directly.
        operations: see above.
        strengths: that are tried; 1 writes an entity as strongly as it is found.
        num_levels: mazes, one a test level.
        tuning_levels: mazes on which strengths are tried, one a validation level.
        fit_levels: mazes on whose untouched play readings and directions are fitted, of other validation levels.
        comparison_levels: further validation levels, on whose natural play policies are compared.
        distances: moves to the entities, least and greatest.
        max_steps: without a touch until here is a failure.
        distribution_mode: of heist.
        seed: of mazes, noise and controls.
        num_environments: mazes played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that cannot be steered at, an unknown operation or
            source, distances that do not rise, numbers below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("conv2b", "conv4a"),
        sae: str | None = None,
        sources: tuple[Literal["probe", "means"], ...] = ("probe", "means"),
        operations: tuple[str, ...] = OPERATIONS,
        strengths: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0),
        num_levels: int = 240,
        tuning_levels: int = 120,
        fit_levels: int = 300,
        comparison_levels: int = 16,
        distances: tuple[int, int] = (2, 6),
        max_steps: int = 100,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        check_at_least_one({"max_steps": max_steps, "num_environments": num_environments})
        check_not_negative({"seed": seed})
        check_distances(distances)
        if not strengths or min(strengths) <= 0:
            raise ValueError(f"strengths {list(strengths)} must be at least one, and all above 0")
        check_not_empty({"operations": operations})
        for name in operations:
            operation(name, 0, 1)
        self.levels = held_out_levels("test", num_levels)
        self.tuned = held_out_levels("validation", tuning_levels)
        self.fitted = held_out_levels("validation", fit_levels, tuning_levels)
        self.compared = held_out_levels("validation", comparison_levels, tuning_levels + fit_levels)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        where = choose_device(device)
        self.agent, self.name = load_agent(agent).to(where), agent
        self.sae = None if sae is None else load_sae(sae, self.agent).to(where).eval().requires_grad_(False)
        self.taps = tuple(dict.fromkeys([*taps, *([] if self.sae is None else [self.sae.tap])]))
        check_not_empty({"taps": self.taps})
        self.agent.check_taps(list(self.taps), inner=True)
        read = [tap for tap in self.agent.taps if layer_behind(self.agent, tap) is not None]
        without_eigen = set(self.taps).isdisjoint(read)
        if self.sae is None and without_eigen:
            check_not_empty({"sources": sources})  # latents and eigenfilters would be others
        if read and without_eigen:
            warnings.warn(
                f"no bilinear layer reads {' or '.join(self.taps)} directly, so there are no eigenfilters: they need "
                f"one of {', '.join(read)} among taps",
                stacklevel=2,
            )
        self.sources, self.operations, self.strengths = sources, operations, tuple(sorted(strengths))
        self.distances, self.max_steps, self.seed = distances, max_steps, seed
        self.num_environments = num_environments
        self.precision: Precision = precision

    def run(self) -> Report:
        """Fit, tune, play, count."""
        sources = find_sources(
            self.agent, self.taps, self._views(), sources=self.sources, sae=self.sae, seed=self.seed,
            precision=self.precision,
        )  # fmt: skip
        tuning, test = (self._mazes(levels) for levels in (self.tuned, self.levels))
        other_noise = self._play(test.states, seed=self.seed + 1).touched
        preferred = preferred_entities(tuning)
        methods = [Method(tap, source, name) for (tap, source), name in product(sources, self.operations)]

        def edit(method: Method, entity: str, strength: float, control: bool = False) -> SteerEdit:
            found = sources[method.tap, method.source]
            mix, push = operation(method.operation, SEEN.index(entity), preferred[entity])
            directions = found.control if control else found.directions
            device = next(self.agent.parameters()).device
            return SteerEdit(found.reader, directions, mix, push, strength).to(device)

        tried = [
            (method, entity, strength)
            for method, entity, strength in product(methods, SEEN, self.strengths)
            if tuning.counted(entity)
        ]
        shares = self._success(
            tuning, [(method.tap, of, edit(method, of, much)) for method, of, much in tried], "doses"
        )
        doses: dict[tuple[Method, str], Dose] = {}
        for number in range(0, len(tried), len(self.strengths)):
            dose = shares[number : number + len(self.strengths)]
            highest = int(np.argmax([share.value for share in dose]))  # the smallest strength of equals
            doses[tried[number][:2]] = Dose(self.strengths, dose, highest)
        intervals: dict[str, Interval] = {}
        summary: dict[str, float] = {"steering/levels": float(len(test.states))}
        for entity in SEEN:
            rows = test.counted(entity)
            summary[f"steering/{entity}/counted"] = float(len(rows))
            if rows:
                hits = int((other_noise[rows] == ENTITIES.index(entity)).sum())
                intervals[f"steering/{entity}/none"] = wilson_interval(hits, len(rows))
        chosen = {
            trial: edit(*trial, self.strengths[dose.best]) for trial, dose in doses.items() if test.counted(trial[1])
        }
        norms = self._norms(chosen, test)
        compared = self._compare(chosen)
        arms = ("success", "random_direction", "random_agent")
        played: list[tuple[str, str, nn.Module]] = []
        for (method, entity), steer in chosen.items():
            other = edit(method, entity, steer.strength, control=True)
            random = RandomDirection(steer, self.seed).to(steer.mix.device)
            played += [(method.tap, entity, module) for module in (steer, random, other)]
        found = iter(self._success(test, played, "test mazes"))
        for (method, entity), steer in chosen.items():
            key = f"steering/{method.key}/{entity}"
            intervals |= {f"{key}/{arm}": next(found) for arm in arms}
            intervals |= {f"{key}/{name}": interval for name, interval in compared[method, entity].items()}
            summary |= {f"{key}/strength": steer.strength, f"{key}/norm": norms[method, entity]}
        best_methods: dict[str, Method] = {}
        films: dict[str, Film] = {}
        for entity in SEEN:
            reached = [(dose.shares[dose.best].value, method) for (method, of), dose in doses.items() if of == entity]
            if reached and test.counted(entity):
                best = best_methods[entity] = max(reached, key=lambda pair: pair[0])[1]
                for name in (*arms, "kl", "action_agreement"):
                    intervals[f"steering/{entity}/{name}"] = intervals[f"steering/{best.key}/{entity}/{name}"]
                for name in ("strength", "norm"):
                    summary[f"steering/{entity}/{name}"] = summary[f"steering/{best.key}/{entity}/{name}"]
                some = [test.states[row] for row in test.counted(entity)[:_FILMED]]
                shown = {"unedited": self._play(some), "steered": self._play(some, [(best.tap, chosen[best, entity])])}
                films[entity] = choice_film(some, shown, self.settings)
        summary |= join_metrics(intervals)
        tables = steering_tables(doses, best_methods, summary)
        figures = {"doses": draw_doses(doses, summary)}
        page = steering_page(self.name, summary, tables, figures, list(films))
        return Report(summary, tables, figures, films, {"steering": page})

    def _views(self) -> Views:
        """What the untouched agent comes to in mazes of the levels to fit on."""
        mazes = choice_mazes(first_states(self.fitted, self.settings), self.seed, self.distances)
        return choice_views(
            self.agent, [maze.to_bytes() for maze, _ in mazes], settings=self.settings, seed=self.seed,
            num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision,
        )  # fmt: skip

    def _mazes(self, levels: range) -> Mazes:
        made = choice_mazes(first_states(levels, self.settings), self.seed, self.distances)
        states = [maze.to_bytes() for maze, _ in made]
        return Mazes(states, [pair for _, pair in made], self._play(states).touched)

    def _play(
        self, states: list[bytes], edits: Sequence[Edit] = (), trials: Sequence[int] | None = None,
        seed: int | None = None, title: str | None = None,
    ) -> Choices:  # fmt: skip
        """Until something is touched."""
        return play_choices(
            self.agent, states, settings=self.settings, edits=edits, trials=trials,
            seed=self.seed if seed is None else seed, num_environments=self.num_environments,
            max_steps=self.max_steps, precision=self.precision, progress=title,
        )  # fmt: skip

    def _success(self, mazes: Mazes, trials: Sequence[tuple[str, str, nn.Module]], title: str) -> list[Interval]:
        """For each (tap, entity, edit) how often the entity is touched in its counted mazes; those of a tap at once."""
        shares: dict[int, Interval] = {}
        for tap in dict.fromkeys(tap for tap, _, _ in trials):
            own = [number for number, trial in enumerate(trials) if trial[0] == tap]
            rows = [(place, row) for place, number in enumerate(own) for row in mazes.counted(trials[number][1])]
            places = np.array([place for place, _ in rows])
            touched = self._play(
                [mazes.states[row] for _, row in rows], [(tap, EditOfEach([trials[number][2] for number in own]))],
                places.tolist(), title=f"{title}, {tap}",
            ).touched  # fmt: skip
            for place, number in enumerate(own):
                hits = touched[places == place] == ENTITIES.index(trials[number][1])
                shares[number] = wilson_interval(int(hits.sum()), len(hits))
        return [shares[number] for number in range(len(trials))]

    def _norms(self, edits: Mapping[tuple[Method, str], SteerEdit], mazes: Mazes) -> dict[tuple[Method, str], float]:
        """Root mean square over positions of each edit's change, over the first frames of the mazes it is played in."""
        frames = torch.from_numpy(render_states(mazes.states, self.settings))
        found: dict[tuple[Method, str], float] = {}
        for (method, entity), edit in edits.items():
            part = frames[mazes.counted(entity)][:_BATCH]
            acts = record_taps(self.agent, part, [method.tap], self.precision)[method.tap]
            with torch.inference_mode():
                found[method, entity] = float(edit.change(acts.float()).square().sum(1).mean().sqrt())
        return found

    def _compare(self, edits: Mapping[tuple[Method, str], SteerEdit]) -> dict[tuple[Method, str], dict[str, Interval]]:
        """How far each edit changes the policy on natural play, where nobody asked for anything."""
        names = {f"{method.key}/{entity}": (method, entity) for method, entity in edits}
        arms = {name: [(trial[0].tap, edits[trial])] for name, trial in names.items()}
        comparisons = PolicyComparisons(self.agent, arms, self.compared, self.precision, every=8)
        play_episodes(
            self.agent, self.compared, settings=self.settings, seed=self.seed, max_steps=self.max_steps,
            num_environments=self.num_environments, precision=self.precision, observer=comparisons,
        )  # fmt: skip
        found = {names[name]: comparison.intervals() for name, comparison in comparisons.of.items()}
        return {trial: {name: each[name] for name in ("kl", "action_agreement")} for trial, each in found.items()}
