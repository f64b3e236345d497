"""How good is an agent? One episode on each of a fixed list of held-out levels, with or without an edit."""

from typing import Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from environments import EnvironmentSettings, State, VectorEnvironment, held_out_levels
from environments.heist import read_layout
from environments.procgen import DistributionMode
from interpretability.episodes import GAME_TIME_OUT, Episodes, first_states, play_episodes
from interpretability.films import Film, film_of_replays
from interpretability.oracle_play import play_oracle
from interpretability.outcomes import outcome_intervals
from interpretability.replay import ActionLog, replay
from interpretability.statistics import Interval, join_metrics
from networks import DEFAULT_PRECISION, Edit, Precision, TappedNetwork, load_network
from networks.origin import how_trained, training_levels
from studies.arguments import check_at_least_one, check_files, check_not_negative
from studies.edit_choice import EditChoice
from studies.evaluation_tables import Choice, agent_table, draw_outcomes, episode_table, group_table
from studies.report import Report, Study
from studies.subject import choose_device

_PREFIX: dict[Choice, str] = {"sampled": "agent", "greedy": "agent_greedy"}


class EvaluateAgent(Study):
    """Plays held-out levels to the game's own end and reports returns, solved fraction and episode lengths.

    Summary: `agent/return`, `agent/solved`, `agent/episode_length` for sampled play, `agent_greedy/...` for greedy,
    each with 95 % bounds over levels; `agent/levels`; in heist the same once more under `agent/keys_K/` for the
    levels with K keys, and `agent/optimality`: the mean over solved levels of the oracle's steps / the agent's, both
    played on the same levels. Two evaluations with the same seed share levels and action noise, whatever their edits.

    Several agents, usually of one recipe and several seeds, play the same levels with the same noise. The metrics are
    then means over agents with bounds over agents and levels; `agent/return_iqm` is the interquartile mean over
    agents, and the table `by_agent` has each on its own.

    Args:
        agent: path of the weights of an agent, or of a decision transformer (which asks for its own `asked_return`;
            `studies.AskedReturns` plays several), or several.
        split: held-out levels to play; keep `test` for what is reported. `train` takes those that the agent was trained
            on, by its own file: what it achieves there beyond held-out levels is the generalisation gap.
        num_levels: the first so many of them.
        game: any procgen game; the number of keys is counted, and the oracle plays, in heist.
        distribution_mode: its difficulty.
        choose: sample actions, take the likeliest, or both.
        sae: path of an autoencoder that replaces its tap; it was trained on one agent, so give only that.
        ablation: replaces `tap` by zeros, or by its mean over untouched sampled play (the first 200 steps of up to 64
            of the levels) at each channel and position.
        edit: any module, put in at `tap`.
        tap: where `ablation` or `edit` go; an autoencoder knows its own.
        saved_edit: path of an edit that `studies.Retargeting` found, on this agent or another; it knows its own tap.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        film_episodes: the first so many solved and so many failed episodes of the first agent are filmed.
        precision: in which the agent runs.
        device: where; `auto` takes a GPU if there is one.
        allow_other_agent: take an autoencoder that was trained on another agent, if its tap fits.

    Raises:
        ValueError: a file that is missing or does not fit, an edit without a tap, more than one edit, too many levels.
    """

    def __init__(
        self,
        agent: list[str] | str,
        split: Literal["validation", "test", "train"] = "test",
        num_levels: int = 1_000,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        choose: Literal["sampled", "greedy", "both"] = "both",
        sae: str | None = None,
        ablation: Literal["mean", "zero"] | None = None,
        edit: nn.Module | None = None,
        tap: str | None = None,
        saved_edit: str | None = None,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        film_episodes: int = 3,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
        allow_other_agent: bool = False,
    ) -> None:
        self.edit_choice = EditChoice(sae, ablation, edit, tap, allow_other_agent, saved_edit)
        check_at_least_one({"num_environments": num_environments, "max_steps": max_steps})
        check_not_negative({"film_episodes": film_episodes, "seed": seed})
        self.names = [agent] if isinstance(agent, str) else list(agent)
        check_files("agent", self.names)
        if sae is not None and len(self.names) > 1 and not allow_other_agent:
            raise ValueError(
                "an autoencoder belongs to the one agent that it was trained on: give one agent, no sae, "
                "or allow_other_agent"
            )
        self.settings = EnvironmentSettings(game, distribution_mode)
        VectorEnvironment(self.settings, 1).close()  # refuses an unknown game
        where = choose_device(device)
        self.agents = [load_network(path).to(where) for path in self.names]
        for each in self.agents:
            self.edits = self.edit_choice.load(each, where)  # the same for all
        if split == "train":
            levels = {
                training_levels(one.metadata, num_levels, path)
                for path, one in zip(self.names, self.agents, strict=True)
            }
            if len(levels) > 1:
                raise ValueError(f"the agents {self.names} were trained on different levels: evaluate them one by one")
            self.levels = levels.pop()
        else:
            self.levels = held_out_levels(split, num_levels)
        self.trainings = [how_trained(each.metadata) for each in self.agents]
        if len(set(self.trainings)) > 1:
            kinds = "; ".join(f"{name}: {how}" for name, how in zip(self.names, self.trainings, strict=True))
            rank_zero_warn(f"agents trained in different ways are averaged, which may think differently ({kinds})")
        self.choices: list[Choice] = ["sampled", "greedy"] if choose == "both" else [choose]
        self.seed, self.num_environments, self.max_steps = seed, num_environments, max_steps
        self.film_episodes = film_episodes
        self.precision: Precision = precision

    def run(self) -> Report:
        """Play and count."""
        heist = self.settings.game == "heist"
        keys = self._count_keys() if heist else None
        oracle = self._play_oracle() if heist else None
        played: dict[Choice, list[Episodes]] = {choice: [] for choice in self.choices}
        logs: dict[Choice, ActionLog] = {}
        for agent in self.agents:
            edits = self.edits_for(agent)
            for choice in self.choices:
                log = ActionLog()
                played[choice].append(self._play(agent, choice, edits, log))
                logs.setdefault(choice, log)
        groups = {"all": np.ones(len(self.levels), dtype=bool)}
        groups |= {} if keys is None else {str(count): keys == count for count in sorted(set(keys.tolist()))}
        measured = {
            choice: {
                group: outcome_intervals(
                    [run.select(chosen) for run in runs],
                    None if oracle is None else oracle.select(chosen),
                    None if keys is None else keys[chosen],
                )
                for group, chosen in groups.items()
            }
            for choice, runs in played.items()
        }
        counts = {group: int(chosen.sum()) for group, chosen in groups.items()}
        tables = {
            "by_number_of_keys" if heist else "all_levels": group_table(measured, counts),
            "episodes": episode_table(played, self.names, keys, oracle),
        }
        if len(self.agents) > 1:
            tables["by_agent"] = agent_table(played, self.names, self.trainings, oracle)
        return Report(
            self._summary(measured, counts),
            tables,
            {"episodes": draw_outcomes(measured, played, self.max_steps)},
            {
                f"{choice}_{name}": film
                for choice in self.choices
                for name, film in self._films(played[choice][0], logs[choice]).items()
            },
        )

    def edits_for(self, agent: TappedNetwork) -> list[Edit]:
        """What is put in at its taps; a mean is over the agent's own play."""
        return self.edit_choice.resolve(self.edits, agent, self.levels, self.settings, self.precision, self.seed)

    def _play(self, agent: TappedNetwork, choice: Choice, edits: list[Edit], log: ActionLog) -> Episodes:
        return play_episodes(
            agent,
            self.levels,
            settings=self.settings,
            edits=edits,
            greedy=choice == "greedy",
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=self.precision,
            observer=log,
            progress=f"play {choice}",
        )

    def _play_oracle(self) -> Episodes:
        return play_oracle(
            self.levels, settings=self.settings, num_environments=self.num_environments, progress="play oracle"
        )

    def _summary(
        self, measured: dict[Choice, dict[str, dict[str, Interval]]], counts: dict[str, int]
    ) -> dict[str, float]:
        summary: dict[str, float] = {}
        for choice, parts in measured.items():
            for group, intervals in parts.items():
                prefix = _PREFIX[choice] if group == "all" else f"{_PREFIX[choice]}/keys_{group}"
                summary |= join_metrics({f"{prefix}/{name}": interval for name, interval in intervals.items()})
                summary[f"{prefix}/levels"] = counts[group]
        return summary

    def _films(self, episodes: Episodes, log: ActionLog) -> dict[str, Film]:
        """The first solved and the first failed episodes: not a choice of the best."""
        films = {}
        for name, rows in (("solved", episodes.solved), ("failed", ~episodes.solved)):
            levels = episodes.levels[rows][: self.film_episodes].tolist()
            if levels:
                replays = [replay(level, log.actions(level), self.settings) for level in levels]
                films[name] = film_of_replays(replays, [f"level {level}, {name}" for level in levels])
        return films

    def _count_keys(self) -> np.ndarray:
        states = first_states(self.levels, self.settings, self.num_environments)
        return np.array([len(read_layout(State.from_bytes(state)).maze.keys) for state in states])
