"""How good is an agent? One episode on each of a fixed list of held-out levels, with or without an edit."""

from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from environments import EnvironmentSettings, State, VectorEnvironment, held_out_levels
from environments.heist import read_layout
from environments.procgen import DistributionMode
from interpretability.episodes import GAME_TIME_OUT, Episodes, first_states, play_episodes
from interpretability.splice import PolicyComparison, TapMean, ZeroAblation
from interpretability.statistics import Interval, bootstrap_interval, wilson_interval
from networks import Edit, Precision, load_agent, load_sae
from studies.report import Cell, Report, Study, Table

Choice = Literal["sampled", "greedy"]
_PREFIX: dict[Choice, str] = {"sampled": "agent", "greedy": "agent_greedy"}
_MEAN_LEVELS = 64
_MEAN_STEPS = 200


class EvaluateAgent(Study):
    """Plays held-out levels to the game's own end and reports returns, solved fraction and episode lengths.

    Summary: `agent/return`, `agent/solved`, `agent/episode_length` for sampled play, `agent_greedy/...` for greedy,
    each with 95 % bounds over levels; `agent/levels`; in heist the same once more under `agent/keys_K/` for the
    levels with K keys. Two evaluations with the same seed share levels and action noise, whatever their edits.

    Args:
        agent: path of the agent's weights.
        split: held-out levels to play; keep `test` for what is reported.
        num_levels: the first so many of them.
        game: any procgen game; the number of keys is counted in heist.
        distribution_mode: its difficulty.
        choose: sample actions, take the likeliest, or both.
        sae: path of an autoencoder that replaces its tap.
        ablation: replaces `tap` by zeros, or by its mean over untouched sampled play (the first 200 steps of up to 64
            of the levels) at each channel and position.
        edit: any module, put in at `tap`.
        tap: where `ablation` or `edit` go; an autoencoder knows its own.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        precision: in which the agent runs.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, an edit without a tap, more than one edit, too many levels.
    """

    def __init__(
        self,
        agent: str,
        split: Literal["validation", "test"] = "test",
        num_levels: int = 1_000,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        choose: Literal["sampled", "greedy", "both"] = "both",
        sae: str | None = None,
        ablation: Literal["mean", "zero"] | None = None,
        edit: nn.Module | None = None,
        tap: str | None = None,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        precision: Precision = "bf16",
        device: str = "auto",
    ) -> None:
        if sum(option is not None for option in (sae, ablation, edit)) > 1:
            raise ValueError("sae, ablation and edit exclude each other: give one of them")
        if (ablation or edit) and tap is None:
            raise ValueError("ablation and edit need a tap: name the one that they replace")
        if tap is not None and not (ablation or edit):
            raise ValueError(
                f"tap {tap!r} is given without an ablation or an edit to put in there (an sae has its own)"
            )
        if num_environments < 1 or max_steps < 1:
            raise ValueError(f"num_environments {num_environments} and max_steps {max_steps} must be at least 1")
        self.levels = held_out_levels(split, num_levels)
        self.settings = EnvironmentSettings(game, distribution_mode)
        VectorEnvironment(self.settings, 1).close()  # refuses an unknown game
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.agent = load_agent(agent).to(where)
        self.choices: list[Choice] = ["sampled", "greedy"] if choose == "both" else [choose]
        self.seed, self.num_environments, self.max_steps = seed, num_environments, max_steps
        self.precision: Precision = precision
        self.ablate_mean_at: str | None = None
        self.edits: list[Edit] = []
        if sae is not None:
            autoencoder = load_sae(sae, agent=self.agent).to(where)
            self.edits = [(autoencoder.tap, autoencoder)]
        elif tap is not None:
            self.agent.check_taps([tap])
            if ablation == "mean":
                self.ablate_mean_at = tap
            else:
                self.edits = [(tap, (ZeroAblation() if edit is None else edit).to(where))]

    def run(self) -> Report:
        """Play and count."""
        edits = self._mean_ablation(self.ablate_mean_at) if self.ablate_mean_at else self.edits
        keys = self._count_keys()
        summary: dict[str, float] = {}
        by_keys: list[list[Cell]] = []
        episodes: dict[Choice, Episodes] = {}
        for choice in self.choices:
            played = episodes[choice] = self._play(choice, edits)
            prefix = _PREFIX[choice]
            for count in [None, *([] if keys is None else sorted(set(keys.tolist())))]:
                part = played if keys is None or count is None else played.select(keys == count)
                metrics = part.metrics(prefix if count is None else f"{prefix}/keys_{count}")
                metrics[f"{prefix}/levels" if count is None else f"{prefix}/keys_{count}/levels"] = len(part.levels)
                summary |= metrics
                by_keys.append([choice, "all" if count is None else count, len(part.levels), *_cells(part)])
        columns = ["actions", "keys", "levels", "return", "solved", "episode length"]
        return Report(
            summary,
            {"by_number_of_keys": Table(columns, by_keys), "episodes": _episode_table(episodes, keys)},
            {"episodes": _draw(episodes, keys, self.max_steps)},
        )

    def _play(self, choice: Choice, edits: list[Edit]) -> Episodes:
        return play_episodes(
            self.agent,
            self.levels,
            settings=self.settings,
            edits=edits,
            greedy=choice == "greedy",
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=self.precision,
            progress=f"play {choice}",
        )

    def _mean_ablation(self, tap: str) -> list[Edit]:
        levels = self.levels[:_MEAN_LEVELS]
        mean = TapMean()
        play_episodes(
            self.agent,
            levels,
            settings=self.settings,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=min(self.max_steps, _MEAN_STEPS),
            precision=self.precision,
            observer=PolicyComparison(self.agent, [(tap, mean)], levels, self.precision),
            progress=f"mean of {tap}",
        )
        return [(tap, mean.ablation())]

    def _count_keys(self) -> np.ndarray | None:
        if self.settings.game != "heist":
            return None
        states = first_states(self.levels, self.settings, self.num_environments)
        return np.array([len(read_layout(State.from_bytes(state)).maze.keys) for state in states])


def _cells(episodes: Episodes) -> list[Cell]:
    solved = wilson_interval(int(episodes.solved.sum()), len(episodes.levels))
    percent = Interval(*(100 * bound for bound in solved))
    returns, lengths = bootstrap_interval(episodes.returns), bootstrap_interval(episodes.lengths)
    return [_text(returns, 2), _text(percent, 1, " %"), _text(lengths, 1)]


def _text(interval: Interval, digits: int, unit: str = "") -> str:
    value, low, high = (f"{bound:.{digits}f}" for bound in interval)
    return f"{value}{unit} ({low} to {high})"


def _episode_table(episodes: dict[Choice, Episodes], keys: np.ndarray | None) -> Table:
    rows: list[list[Cell]] = []
    for choice, played in episodes.items():
        counts = ["" if keys is None else int(count) for count in (played.levels if keys is None else keys)]
        outcomes = (played.levels, played.returns, played.solved, played.lengths, played.cut)
        for count, *outcome in zip(counts, *(values.tolist() for values in outcomes), strict=True):
            level, total, solved, length, cut = outcome
            rows.append([choice, level, count, total, int(solved), length, int(cut)])
    return Table(["actions", "level", "keys", "return", "solved", "length", "cut"], rows, printed=False)


def _draw(episodes: dict[Choice, Episodes], keys: np.ndarray | None, max_steps: int) -> Figure:
    """Return by number of keys with 95 % intervals, beside episode lengths."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    groups = ["all", *([] if keys is None else sorted(set(keys.tolist())))]
    width = 0.8 / len(episodes)
    for place, (choice, played) in enumerate(episodes.items()):
        parts = [played if group == "all" else played.select(keys == group) for group in groups]
        bars = [bootstrap_interval(part.returns) for part in parts]
        errors = np.array([[bar.value - bar.low, bar.high - bar.value] for bar in bars]).T.tolist()
        positions = np.arange(len(groups)) + (place - (len(episodes) - 1) / 2) * width
        left.bar(positions, [bar.value for bar in bars], width, yerr=errors, capsize=3, label=choice)
        right.hist(played.lengths, bins=np.linspace(0, max_steps, 51).tolist(), histtype="step", label=choice)
    left.set_xticks(range(len(groups)), [str(group) for group in groups])
    left.set(xlabel="keys in the level", ylabel="mean return, 95 % interval", title="Return by number of keys")
    right.set(xlabel="steps", ylabel="levels", yscale="log", title="Episode length")
    left.legend(loc="lower left")
    right.legend()
    return figure
