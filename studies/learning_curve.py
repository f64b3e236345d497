"""How does what an agent achieves grow with the frames that it was trained on? Checkpoints, played."""

from pathlib import Path
from typing import Final, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from environments import EnvironmentSettings, VectorEnvironment, held_out_levels
from environments.procgen import DistributionMode
from interpretability.episodes import GAME_TIME_OUT, Episodes, play_episodes
from interpretability.oracle_play import play_oracle
from interpretability.outcomes import outcome_intervals
from interpretability.statistics import Interval, join_metrics, resampled_means, spreads
from networks import DEFAULT_PRECISION, Precision, TappedNetwork, load_network
from networks.origin import frames_trained, how_trained
from networks.origin import training_levels as levels_of_training
from studies.arguments import check_at_least_one, check_not_negative
from studies.evaluation_tables import agent_table
from studies.report import Report, Study
from studies.subject import choose_device

_PUBLISHED: Final = {("heist", "easy"): [(25e6, 7.14), (50e6, 9.44)]}
"""Environment frames and mean return of training on all levels; train-procgen's PPO, IMPALA network, three runs
(github.com/openai/train-procgen, results/). Running means of training, not of fixed levels."""


class LearningCurve(Study):
    """Plays checkpoints over the same held-out levels and draws return and solved fraction against frames of training.

    Frames are those of the whole way: an agent that began as another one counts that one's too, as its file says.
    Agents of one architecture that were trained in the same way are joined by a line. In heist, easy, the published
    points of PPO from scratch stand beside them.

    Writes `figures/learning_curve.png` and the table `checkpoints`. Summary, for each file's name without its ending:
    `curve/NAME/frames`, and with 95 % bounds over levels `curve/NAME/return`, `solved`, `episode_length` and, in heist,
    `optimality`; with `training_levels` also `curve/NAME/training/return` and so on, on levels that the agent was
    trained on, and `curve/NAME/gap`, their return minus that on held-out levels: the generalisation gap.

    Args:
        agents: files of agents; `callbacks.AgentExport` with `keep_from` writes a ladder of them along a run.
        split: held-out levels to play.
        num_levels: the first so many of them.
        training_levels: play also the first so many of the levels that each agent was trained on, by its own file.
        game: any procgen game.
        distribution_mode: its difficulty.
        greedy: take the likeliest action rather than sample.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        precision: in which the agents run.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: no file, one twice or two of one name, one that does not say on how many frames it was trained, or
            a number too small.
    """

    def __init__(
        self,
        agents: list[str],
        split: Literal["validation", "test"] = "test",
        num_levels: int = 400,
        training_levels: int = 0,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        greedy: bool = False,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        check_at_least_one({"num_environments": num_environments, "max_steps": max_steps, "agents": len(agents)})
        check_not_negative({"seed": seed, "training_levels": training_levels})
        self.stems = [Path(path).stem for path in agents]
        if len(set(self.stems)) < len(agents):
            raise ValueError(f"agents {agents}: two files have the same name, by which the figures go")
        self.levels = held_out_levels(split, num_levels)
        self.settings = EnvironmentSettings(game, distribution_mode)
        VectorEnvironment(self.settings, 1).close()  # refuses an unknown game
        where = choose_device(device)
        self.names, self.agents = agents, [load_network(path).to(where) for path in agents]
        self.frames: list[int] = []
        for path, agent in zip(agents, self.agents, strict=True):
            if (frames := frames_trained(agent.metadata)) is None:
                raise ValueError(f"{path} does not say on how many frames it was trained (env_steps): leave it out")
            self.frames.append(frames)
        told = zip(agents, self.agents, strict=True) if training_levels else ()
        self.seen = [levels_of_training(agent.metadata, training_levels, path) for path, agent in told]
        self.trainings = [how_trained(agent.metadata) for agent in self.agents]
        self.lines = self.trainings
        if len({agent.architecture for agent in self.agents}) > 1:
            self.lines = [
                f"{agent.architecture}, {how}" for agent, how in zip(self.agents, self.trainings, strict=True)
            ]
        self.greedy, self.seed, self.num_environments, self.max_steps = greedy, seed, num_environments, max_steps
        self.precision: Precision = precision

    def run(self) -> Report:
        """Play, count, draw."""
        oracle: Episodes | None = None
        if self.settings.game == "heist":
            oracle = play_oracle(
                self.levels, settings=self.settings, num_environments=self.num_environments, progress="play oracle"
            )
        played = [
            self._play(agent, self.levels, f"play {stem}") for agent, stem in zip(self.agents, self.stems, strict=True)
        ]
        seen = [
            self._play(self.agents[row], levels, f"play {self.stems[row]} where it was trained")
            for row, levels in enumerate(self.seen)
        ]
        measured = [outcome_intervals([run], oracle) for run in played]
        measured_seen = [outcome_intervals([run]) for run in seen]
        summary: dict[str, float] = {}
        for row, stem in enumerate(self.stems):
            summary[f"curve/{stem}/frames"] = self.frames[row]
            intervals = dict(measured[row])
            if seen:
                intervals |= {f"training/{name}": interval for name, interval in measured_seen[row].items()}
                intervals["gap"] = _gap(seen[row], played[row])
            summary |= join_metrics({f"curve/{stem}/{name}": interval for name, interval in intervals.items()})
        table = agent_table({"greedy" if self.greedy else "sampled": played}, self.names, self.trainings, oracle)
        table.columns.append("frames of training")
        for cells, frames in zip(table.rows, self.frames, strict=True):
            cells.append(frames)
        figure = self._draw(measured, measured_seen)
        return Report(summary, {"checkpoints": table}, {"learning_curve": figure})

    def _play(self, agent: TappedNetwork, levels: range, progress: str) -> Episodes:
        return play_episodes(
            agent,
            levels,
            settings=self.settings,
            greedy=self.greedy,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=self.precision,
            progress=progress,
        )

    def _draw(self, measured: list[dict[str, Interval]], seen: list[dict[str, Interval]]) -> Figure:
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        sides = figure.subplots(1, 2, sharex=True)
        for axes, name in zip(sides, ("return", "solved"), strict=True):
            for training in dict.fromkeys(self.lines):
                rows = [row for row, line in enumerate(self.lines) if line == training]
                rows.sort(key=lambda row: self.frames[row])
                frames = [self.frames[row] for row in rows]
                values = np.array([measured[row][name] for row in rows])  # value, low, high
                drawn = axes.errorbar(frames, values[:, 0], spreads(values), marker="o", capsize=3, label=training)
                if seen:
                    values = np.array([seen[row][name] for row in rows])
                    look = {"marker": "o", "mfc": "none", "ls": "--", "color": drawn.lines[0].get_color()}
                    label = f"{training}, on levels of its training"
                    axes.errorbar(frames, values[:, 0], spreads(values), capsize=3, label=label, **look)
            axes.set(xscale="log", xlabel="environment frames of training", ylabel=name)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        if published := _PUBLISHED.get((self.settings.game, self.settings.distribution_mode)):
            label = "PPO from scratch, train-procgen, in training"
            sides[0].plot(*zip(*published, strict=True), marker="s", ls="--", color="0.5", label=label)
        figure.legend(*sides[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
        return figure


def _gap(seen: Episodes, held_out: Episodes) -> Interval:
    """Mean return on levels of training minus that on others, with its percentile bootstrap interval."""
    draws = resampled_means(seen.returns) - resampled_means(held_out.returns, seed=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return Interval(float(seen.returns.mean() - held_out.returns.mean()), float(low), float(high))
