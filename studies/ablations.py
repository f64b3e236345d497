"""What is lost without a unit, a pair of them, or a group? Zero, mean and resample ablation, and synergy of pairs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from environments import EnvironmentSettings, held_out_levels
from interpretability.ablations import AblationKind
from interpretability.choice_film import choice_film
from interpretability.choices import NOTHING
from interpretability.episodes import first_states
from interpretability.films import Film
from interpretability.statistics import Interval, bootstrap_interval, join_metrics, wilson_interval
from interpretability.unit_maps import played_frames, unit_maps
from networks import DEFAULT_PRECISION, Precision, TappedAgent
from studies.ablation_figures import (
    TOUCHED,
    ablation_page,
    draw_choices,
    draw_units,
    touched_shares,
)
from studies.ablation_sets import group_effects, pair_synergy
from studies.ablation_trials import CHANGED, KEYS, AblationTrials, Levels, Outcomes
from studies.arguments import check_at_least_one, check_not_negative, check_writable
from studies.report import Cell, Report, Study, Table
from studies.retargeting_search import choice_mazes
from studies.subject import choose_device, load_subject

_FILMED = 3
_PER_LEVEL = 8  # frames of each validation level that means and groups are of


class Ablations(Study):
    """Takes away every unit of a tap, pairs of the strongest ones and groups of co-active ones, and plays on.

    Two effects, each paired with the agent that is left alone on the same levels with the same noise: `changed`, the
    share of mazes of choices in which another entity, or nothing, is touched first; and `return_loss`, its return on
    natural levels less the ablated one's (heist pays 10 for the gem and nothing else). Zero ablation puts 0 in the
    unit's place, mean ablation its mean over validation play at each position, resample ablation its map of another
    frame of that play, drawn anew whenever what the agent sees changes. Units are ordered, and those of pairs chosen,
    by `changed` in mazes of validation levels under the ablation `combined`; all that is reported is of test levels.
    The intervals (95 %, bootstrap) are over levels.

    Synergy of a pair is the effect of both less the sum of the two single effects. Groups are clusters of units active
    at the same positions (`co_active_groups`; on a tap that falls below 0 of units whose activations correlate), held
    against the mean over random sets of as many other units.

    Writes the page `pages/ablations.html`, figures and tables `units`, `choices`, `pairs`, `groups`, and a film of
    mazes in which the unit that came first changes the choice. Summary:
    `ablation/clean/touched` and `/solved` of the agent left alone; `ablation/nothing/changed` (an empty set, in other
    company: what rounding does to close choices), `ablation/other_noise/changed`; for each kind
    `ablation/KIND/changed` and `/return_loss`, means over units, `ablation/KIND/first_changed` and
    `/first_return_loss` of the unit that came first on validation levels (`ablation/first_unit`);
    `ablation/random_agent/changed`, the mean over the units of an agent with random weights, in as many test mazes as
    `tuning_mazes`;
    `ablation/pairs/changed_synergy` and `/return_synergy`, means over pairs, also as `ablation/random_pairs/...` over
    pairs drawn among the other units; `ablation/groups/changed`, `/return_loss`, each also as `random_...` and
    `minus_random_...`, means over groups.

    Args:
        agent: path of the agent's weights.
        tap: null for the autoencoder's.
        sae: path of an autoencoder whose latents are taken away instead of the tap's own units.
        kinds: of ablation, for single units.
        combined: of ablation, for the choice of units, pairs, groups and controls.
        tuning_mazes: of choices, on validation levels.
        choice_levels: test levels with a maze of choices.
        natural_levels: test levels played as they are; 0 leaves the return out.
        top_k: units that pairs are made of.
        groups: at most.
        random_sets: drawn for each group; and pairs drawn as a control.
        max_steps: in a maze of choices.
        natural_steps: on a natural level.
        frame_levels: validation levels of the frames that means, other maps and groups are of.
        distribution_mode: of heist.
        seed: of mazes, noise, draws.
        num_environments: played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.
        cache_dir: folder in which arms are kept as they are played: the same command goes on from there.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that is not there, `top_k` of 1 or beyond the units,
            numbers below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        tap: str | None = "conv4a",
        sae: str | None = None,
        kinds: tuple[AblationKind, ...] = ("zero", "mean", "resample"),
        combined: AblationKind = "mean",
        tuning_mazes: int = 64,
        choice_levels: int = 150,
        natural_levels: int = 50,
        top_k: int = 6,
        groups: int = 4,
        random_sets: int = 6,
        max_steps: int = 60,
        natural_steps: int = 300,
        frame_levels: int = 64,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 128,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
        cache_dir: str = ".cache/ablations",
    ) -> None:
        numbers = {
            "tuning_mazes": tuning_mazes, "choice_levels": choice_levels, "groups": groups, "max_steps": max_steps,
            "random_sets": random_sets, "natural_steps": natural_steps, "frame_levels": frame_levels,
            "num_environments": num_environments, "kinds": len(kinds),
        }  # fmt: skip
        check_at_least_one(numbers)
        check_not_negative({"natural_levels": natural_levels, "seed": seed})
        self.device = choose_device(device)
        self.name = Path(agent).name
        self.agent, self.tap, self.sae = load_subject(agent, sae, tap, self.device)
        if len(self.agent.taps[self.tap]) not in (1, 3):
            raise ValueError(f"{self.tap} has no units: choose another tap")
        units = self.agent.taps[self.tap][0] if self.sae is None else self.sae.num_latents
        if not 2 <= top_k <= units:
            raise ValueError(f"top_k {top_k} makes no pairs of {units} units: give 2 to {units}")
        self.kinds, self.combined, self.top_k = tuple(kinds), combined, top_k
        self.groups, self.random_sets, self.frame_levels = groups, random_sets, frame_levels
        self.max_steps, self.natural_steps, self.tuning_mazes = max_steps, natural_steps, tuning_mazes
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.levels = held_out_levels("test", choice_levels)
        self.natural = held_out_levels("test", natural_levels) if natural_levels else range(0)
        self.seed, self.num_environments, self.cache_dir = seed, num_environments, cache_dir
        self.precision: Precision = precision
        check_writable("cache_dir", cache_dir)

    def run(self) -> Report:
        """Measure means, choose on validation mazes, play every ablation on test levels."""
        trials = self._trials(self.agent)
        units = trials.num_units
        levels = Levels(self._mazes(self.levels), self.natural)
        tuning = Levels(self._mazes(held_out_levels("validation", self.tuning_mazes)))
        tuned = trials.without([[unit] for unit in range(units)], self.combined, tuning)
        order = np.argsort(-tuned.changed(trials.clean(tuning)).mean(1), kind="stable").tolist()
        clean = trials.clean(levels)
        singles = {
            kind: trials.without([[], *([unit] for unit in range(units))], kind, levels)
            for kind in dict.fromkeys((*self.kinds, self.combined))
        }
        empty = singles[self.combined].select([0])
        singles = {kind: outcomes.select(range(1, units + 1)) for kind, outcomes in singles.items()}
        other_noise = trials.clean(levels, more_seed=1)
        intervals = {
            "ablation/clean/touched": wilson_interval(int((clean.touched != NOTHING).sum()), len(self.levels)),
            "ablation/nothing/changed": bootstrap_interval(empty.changed(clean)[0], seed=self.seed),
            "ablation/other_noise/changed": bootstrap_interval(
                (other_noise.touched != clean.touched)[0].astype(float), seed=self.seed
            ),
        }
        if len(self.natural):
            intervals["ablation/clean/solved"] = wilson_interval(int(clean.solved.sum()), len(self.natural))
        per_unit: dict[str, dict[str, np.ndarray]] = {kind: singles[kind].effects(clean) for kind in self.kinds}
        for kind, effects in per_unit.items():
            for name, values in effects.items():
                key = f"ablation/{kind}/{KEYS[name]}"
                intervals[key] = bootstrap_interval(values.mean(0), seed=self.seed)
                intervals[f"ablation/{kind}/first_{KEYS[name]}"] = bootstrap_interval(values[order[0]], seed=self.seed)
        intervals["ablation/random_agent/changed"] = self._random_agent(Levels(levels.mazes[: self.tuning_mazes]))
        shown = {
            kind: {name: [bootstrap_interval(row, seed=self.seed) for row in rows] for name, rows in effects.items()}
            for kind, effects in per_unit.items()
        }
        shares = touched_shares(singles[self.combined])
        words = "channel" if self.sae is None else "latent"
        tables = {
            "units": _unit_table(shown, order),
            "choices": _choice_table(shares, touched_shares(clean), self.combined, order),
        }
        figures = {
            "units": draw_units(shown, order, {CHANGED: intervals["ablation/other_noise/changed"].value}, self.tap),
            "choices": draw_choices(
                shares, touched_shares(clean), order,
                f"What is touched first without one {words} of {self.tap} ({self.combined} ablation)",
            ),
        }  # fmt: skip
        for name, part in {
            "pairs": pair_synergy(
                trials, self.combined, order, self.top_k, self.random_sets, singles[self.combined], clean, levels
            ),
            "groups": group_effects(trials, self.combined, self.groups, self.random_sets, clean, levels),
        }.items():
            if part is not None:
                intervals |= part.intervals
                tables[name], figures[name] = part.table, part.figure
        summary = join_metrics(intervals) | {"ablation/first_unit": float(order[0])}
        films = self._films(trials, order[0], levels.mazes, singles[self.combined], clean)
        page = self._page(summary, tables, figures, words, list(films))
        return Report(summary, tables, figures, films, {"ablations": page})

    def _films(
        self, trials: AblationTrials, unit: int, mazes: Sequence[bytes], singles: Outcomes, clean: Outcomes
    ) -> dict[str, Film]:
        """Of the first mazes in which taking away that unit changes the choice; none where it changes none."""
        some = [mazes[row] for row in np.flatnonzero(singles.changed(clean)[unit])[:_FILMED]]
        if not some:
            return {}
        played = {
            "left alone": trials.choices(some, [], self.combined),
            f"without {unit}": trials.choices(some, [[unit]], self.combined),
        }
        return {f"without_{unit}": choice_film(some, played, self.settings)}

    def _trials(self, agent: TappedAgent) -> AblationTrials:
        """What plays this agent; one with random weights has no autoencoder."""
        sae = self.sae if agent is self.agent else None
        frames = played_frames(
            agent, held_out_levels("validation", self.frame_levels), settings=self.settings, per_level=_PER_LEVEL,
            seed=self.seed, num_environments=self.num_environments, precision=self.precision, progress="frames",
        )  # fmt: skip
        maps = unit_maps(agent, self.tap, frames, sae=sae, precision=self.precision)
        return AblationTrials(
            agent, self.tap, sae, maps, self.settings, self.seed, self.num_environments, self.max_steps,
            self.natural_steps, self.precision, self.cache_dir,
        )  # fmt: skip

    def _mazes(self, levels: Sequence[int]) -> list[bytes]:
        return [maze.to_bytes() for maze, _ in choice_mazes(first_states(levels, self.settings), self.seed, (2, 6))]

    def _random_agent(self, levels: Levels) -> Interval:
        """How often taking away a unit changes the choice of an agent with random weights, mean over units."""
        trials = self._trials(self.agent.untrained(self.seed).to(self.device))
        outcomes = trials.without([[unit] for unit in range(trials.num_units)], self.combined, levels)
        return bootstrap_interval(outcomes.changed(trials.clean(levels)).mean(0), seed=self.seed)

    def _page(
        self,
        summary: Mapping[str, float],
        tables: Mapping[str, Table],
        figures: Mapping[str, Figure],
        words: str,
        films: Sequence[str],
    ) -> str:
        natural = (
            f" On {len(self.natural)} natural levels it reaches the gem in "
            f"{100 * summary['ablation/clean/solved']:.1f} %."
            if len(self.natural)
            else ""
        )
        told = [
            f"Agent {self.name}, tap {self.tap}: each {words} is taken away in turn, and the same test levels are "
            f"played with the same noise. Left alone, the agent touches something in "
            f"{100 * summary['ablation/clean/touched']:.1f} % of {len(self.levels)} mazes in which two of the keys and "
            f"the gem can be fetched at once.{natural}",
            f"Controls: with nothing taken away, played in other company, the choice differs in "
            f"{100 * summary['ablation/nothing/changed']:.1f} % of the mazes (rounding); under other noise in "
            f"{100 * summary['ablation/other_noise/changed']:.1f} %. Of an agent with random weights one unit of "
            f"the tap itself changes {100 * summary['ablation/random_agent/changed']:.1f} % of the choices on average.",
            "Zero: 0 in the unit's place; mean: its mean over play at each position; resample: its map of another "
            "frame, drawn anew whenever what the agent sees changes.",
        ]
        return ablation_page(told, tables, figures, films)


def _unit_table(shown: Mapping[str, Mapping[str, Sequence[Interval]]], order: Sequence[int]) -> Table:
    rows: list[list[Cell]] = []
    for kind, effects in shown.items():
        for unit in order:
            cells = [cell for intervals in effects.values() for cell in intervals[unit]]
            rows.append([kind, unit, *cells])
    names = [column for name in next(iter(shown.values())) for column in (name, "low", "high")]
    return Table(["ablation", "unit", *names], rows, printed=False)


def _choice_table(shares: np.ndarray, clean: np.ndarray, kind: str, order: Sequence[int]) -> Table:
    rows: list[list[Cell]] = [["none", "", *clean[0].tolist()]]
    rows += [[kind, unit, *shares[unit].tolist()] for unit in order]
    return Table(["ablation", "unit", *(name.replace("_", " ") for name in TOUCHED)], rows, printed=False)
