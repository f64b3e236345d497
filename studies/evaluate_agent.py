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
from interpretability.statistics import Interval, join_metrics
from networks import Edit, Precision, load_agent, load_sae
from studies.report import Cell, Report, Study, Table

Choice = Literal["sampled", "greedy"]
Measured = dict[Choice, dict[str, dict[str, Interval]]]  # by way of choosing, number of keys, and quantity
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
        groups = {"all": np.ones(len(self.levels), dtype=bool)}
        groups |= {} if keys is None else {str(count): keys == count for count in sorted(set(keys.tolist()))}
        episodes = {choice: self._play(choice, edits) for choice in self.choices}
        measured: Measured = {
            choice: {group: played.select(chosen).intervals() for group, chosen in groups.items()}
            for choice, played in episodes.items()
        }
        summary: dict[str, float] = {}
        rows: list[list[Cell]] = []
        for choice, parts in measured.items():
            for group, intervals in parts.items():
                prefix = _PREFIX[choice] if group == "all" else f"{_PREFIX[choice]}/keys_{group}"
                count = int(groups[group].sum())
                summary |= join_metrics({f"{prefix}/{name}": interval for name, interval in intervals.items()})
                summary[f"{prefix}/levels"] = count
                rows.append([choice, group, count, *_cells(intervals)])
        columns = ["actions", "keys", "levels", "return", "solved", "episode length"]
        return Report(
            summary,
            {"by_number_of_keys": Table(columns, rows), "episodes": _episode_table(episodes, keys)},
            {"episodes": _draw(measured, episodes, self.max_steps)},
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


def _cells(intervals: dict[str, Interval]) -> list[Cell]:
    percent = Interval(*(100 * bound for bound in intervals["solved"]))
    return [_text(intervals["return"], 2), _text(percent, 1, " %"), _text(intervals["episode_length"], 1)]


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


def _draw(measured: Measured, episodes: dict[Choice, Episodes], max_steps: int) -> Figure:
    """Return by number of keys with 95 % intervals, beside episode lengths."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    width = 0.8 / len(episodes)
    for place, (choice, played) in enumerate(episodes.items()):
        groups = list(measured[choice])
        bars = [intervals["return"] for intervals in measured[choice].values()]
        errors = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
        positions = np.arange(len(groups)) + (place - (len(episodes) - 1) / 2) * width
        left.bar(positions, [bar.value for bar in bars], width, yerr=errors, capsize=3)
        left.set_xticks(range(len(groups)), groups)
        right.hist(played.lengths, bins=np.linspace(0, max_steps, 51).tolist(), histtype="step", label=choice)
    left.set(xlabel="keys in the level", ylabel="mean return, 95 % interval", title="Return by number of keys")
    right.set(xlabel="steps", ylabel="levels", yscale="log", title="Episode length")
    right.legend()
    return figure
