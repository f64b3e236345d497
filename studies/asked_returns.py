"""Does a decision transformer deliver what it is asked for? Held-out levels at several returns asked for."""

from collections.abc import Sequence
from typing import Literal

from environments import EnvironmentSettings, held_out_levels
from environments.procgen import DistributionMode
from interpretability.asked_play import (
    AskedPlay,
    check_asked,
    confusion,
    draw_asked,
    draw_confusion_of_play,
    play_asked,
    replays,
)
from interpretability.episodes import GAME_TIME_OUT
from interpretability.films import film_of_replays
from interpretability.statistics import Interval, difference_of_means, join_metrics, paired_bootstrap
from networks import DEFAULT_PRECISION, DecisionTransformer, Precision, load_network
from studies.arguments import check_at_least_one, check_not_negative
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device


class AskedReturns(Study):
    """Plays the same levels with the same action noise at each return asked for, and a reference on them too.

    Summary: `dt/rtg_RETURN/return`, `.../solved`, `.../episode_length` and `.../delivered` (the discounted return),
    with 95 % bounds over levels; the same under `dt/` at the highest; `dt/rtg_RETURN/solved_drop`, how many fewer
    levels are solved there than at the highest, paired by level; the reference's under `cloning/`, and
    `cloning/solved_gain`, what the decision transformer at its highest return solves above it.

    Args:
        agent: path of a decision transformer's weights.
        reference: path of another's that is told nothing, trained on the same data; null plays none.
        asked: discounted returns asked for in the beginning, 0 to 10.
        split: held-out levels to play; keep `test` for what is reported.
        num_levels: the first so many of them.
        distribution_mode: heist's difficulty.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        film_levels: the first so many levels are filmed, at the highest and the lowest return.
        precision: in which the networks run.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or holds another network, returns out of range, too many levels, a number
            below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        reference: str | None = None,
        asked: Sequence[float] = (10.0, 3.0, 1.0, 0.1, 0.0),
        split: Literal["validation", "test"] = "test",
        num_levels: int = 1_000,
        distribution_mode: DistributionMode = "easy",
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        film_levels: int = 3,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        check_at_least_one({"num_environments": num_environments, "max_steps": max_steps, "film_levels": film_levels})
        check_not_negative({"seed": seed})
        check_asked(asked)
        self.levels = held_out_levels(split, num_levels)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        where = choose_device(device)
        self.network = _load(agent).to(where)
        self.reference = None if reference is None else _load(reference).to(where)
        self.asked, self.seed, self.num_environments = tuple(asked), seed, num_environments
        self.max_steps, self.film_levels = max_steps, film_levels
        self.precision: Precision = precision

    def run(self) -> Report:
        """Play and count."""
        play = self._play(self.network)
        highest = play.episodes[0]
        summary = play.metrics()
        differences: dict[str, Interval] = {}
        for asked, episodes in zip(play.asked, play.episodes, strict=True):
            if episodes is not highest:
                name = f"dt/rtg_{asked:g}/solved_drop"
                differences[name] = paired_bootstrap(difference_of_means, [highest.solved, episodes.solved])
        rows = [_row(f"{asked:g}", each) for asked, each in zip(play.asked, play.intervals(), strict=True)]
        if self.reference is not None:
            cloned = self._play(self.reference)
            summary |= {
                f"cloning/{name.removeprefix('dt/')}": value
                for name, value in cloned.metrics().items()
                if not name.startswith("dt/rtg_")
            }
            rows.append(_row("reference", cloned.intervals()[0]))
            differences["cloning/solved_gain"] = paired_bootstrap(
                difference_of_means, [highest.solved, cloned.episodes[0].solved]
            )
        shown = replays(play, self.settings, min(64, len(self.levels)))
        films = {}
        for index in dict.fromkeys((0, len(play.asked) - 1)):
            count = min(self.film_levels, len(self.levels))
            solved = play.episodes[index].solved
            captions = [f"level {self.levels[i]}, {'solved' if solved[i] else 'failed'}" for i in range(count)]
            films[f"asked_{play.asked[index]:g}"] = film_of_replays(
                replays(play, self.settings, count, index), captions
            )
        return Report(
            summary | join_metrics(differences),
            {"asked_returns": Table(["asked for", "solved", "return", "delivered", "steps"], rows)},
            {
                "asked_returns": draw_asked(play, "decision transformer"),
                "confusion": draw_confusion_of_play(confusion(shown), f"asked for {play.asked[0]:g}"),
            },
            films,
        )

    def _play(self, network: DecisionTransformer) -> AskedPlay:
        return play_asked(
            network,
            self.asked,
            self.levels,
            settings=self.settings,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=self.precision,
            progress=True,
        )


def _load(path: str) -> DecisionTransformer:
    network = load_network(path)
    if not isinstance(network, DecisionTransformer):
        raise ValueError(f"{path} holds a {network.architecture}, which is asked for nothing: use EvaluateAgent for it")
    return network


def _row(name: str, intervals: dict[str, Interval]) -> list[Cell]:
    def text(key: str, factor: int, digits: int) -> str:
        value, low, high = (f"{factor * bound:.{digits}f}" for bound in intervals[key])
        return f"{value} ({low} to {high})"

    return [name, text("solved", 100, 1), text("return", 1, 2), text("delivered", 1, 2), text("episode_length", 1, 1)]
