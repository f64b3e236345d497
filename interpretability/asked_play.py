"""Playing a decision transformer at several returns asked for: does it deliver what it is asked?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from environments import EnvironmentSettings
from environments.heist import ACTION_STEPS, DIRECTION_ACTIONS, DIRECTION_STEPS, DIRECTIONS, STAY, label_states
from interpretability.episodes import GAME_TIME_OUT, Episodes, play_episodes
from interpretability.replay import ActionLog, Replay, replay
from interpretability.statistics import Interval, bootstrap_interval, join_metrics, spreads
from networks import DEFAULT_PRECISION, GAMMA, MAX_RETURN, DecisionTransformer, Edit, Precision

ANSWERS = (*DIRECTIONS, "diagonal\nthat way", "other\ndiagonal", "stay")
"""Kinds of action in confusion matrices; a diagonal along a wall goes as fast as its straight part."""


@dataclass(frozen=True)
class AskedPlay:
    """The same levels, played with the same action noise at each return asked for.

    Attributes:
        asked: the discounted returns asked for at the first step, falling; one of them for a network that is not told.
        episodes: of each.
        logs: the actions taken, of each.
        told: whether the network has return tokens.
    """

    asked: tuple[float, ...]
    episodes: tuple[Episodes, ...]
    logs: tuple[ActionLog, ...]
    told: bool

    def intervals(self) -> list[dict[str, Interval]]:
        """Of each return asked for: `return`, `solved`, `episode_length`, and `delivered`, the discounted return."""
        return [played.intervals() | {"delivered": bootstrap_interval(delivered(played))} for played in self.episodes]

    def metrics(self) -> dict[str, float]:
        """`dt/NAME` at the highest return, `dt/rtg_RETURN/NAME` at each, with `_low` and `_high`; `dt/levels`."""
        found = self.intervals()
        intervals = {f"dt/{name}": interval for name, interval in found[0].items()}
        if self.told:
            for asked, each in zip(self.asked, found, strict=True):
                intervals |= {f"dt/rtg_{asked:g}/{name}": interval for name, interval in each.items()}
        return join_metrics(intervals) | {"dt/levels": float(len(self.episodes[0].levels))}


def delivered(episodes: Episodes) -> Float[np.ndarray, " L"]:
    """The discounted return of each episode at its first step: 10 x gamma^(actions to the gem), 0 if it is missed."""
    return np.where(episodes.solved, MAX_RETURN * GAMMA**episodes.lengths, 0.0)


def check_asked(asked: Sequence[float]) -> None:
    """Refuse returns that no episode can give, or none at all.

    Raises:
        ValueError: says what may be asked for.
    """
    if not asked or not all(0 <= each <= MAX_RETURN for each in asked):
        raise ValueError(f"asked {list(asked)}: give discounted returns of 0 to {MAX_RETURN:g}, at least one")


def play_asked(
    network: DecisionTransformer,
    asked: Sequence[float],
    levels: Sequence[int],
    *,
    settings: EnvironmentSettings,
    edits: Sequence[Edit] = (),
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = GAME_TIME_OUT,
    precision: Precision = DEFAULT_PRECISION,
    progress: bool = False,
) -> AskedPlay:
    """Play the levels once at each return asked for; once in all where the network is not told.

    Args:
        network: plays on the device where its parameters are.
        asked: discounted returns, 0 to 10.
        levels, settings, edits, seed, num_environments, max_steps, precision: as for `play_episodes`.
        progress: show a progress bar for each on stderr.

    Raises:
        ValueError: nothing is asked for, or what no episode can give; levels that cannot be played.
    """
    told = "return" in network.tokens
    returns = tuple(sorted(set(asked), reverse=True))[: None if told else 1]
    check_asked(returns)
    episodes, logs = [], []
    for each in returns:
        log = ActionLog()
        played = play_episodes(
            network.asking(each),
            levels,
            settings=settings,
            edits=edits,
            seed=seed,
            num_environments=num_environments,
            max_steps=max_steps,
            precision=precision,
            observer=log,
            progress=f"play, asked for {each:g}" if progress else None,
        )
        episodes.append(played)
        logs.append(log)
    return AskedPlay(returns, tuple(episodes), tuple(logs), told)


def replays(play: AskedPlay, settings: EnvironmentSettings, count: int, index: int = 0) -> list[Replay]:
    """The first `count` levels again, as they were played at one of the returns."""
    levels = play.episodes[index].levels[:count].tolist()
    return [replay(level, play.logs[index].actions(level), settings) for level in levels]


def confusion(shown: Sequence[Replay]) -> Int[np.ndarray, "4 7"]:
    """How often each kind of action was taken (columns, `ANSWERS`) where the shortest way leads in one direction
    alone (rows, `DIRECTIONS`).
    """
    counts = np.zeros((len(DIRECTIONS), len(ANSWERS)), dtype=np.int64)
    kinds = np.full((len(DIRECTIONS), len(ACTION_STEPS)), 5)  # by direction and action: another diagonal, unless ...
    for direction, step in enumerate(DIRECTION_STEPS):
        kinds[direction, (np.array(ACTION_STEPS) @ np.array(step)) == 1] = 4
    kinds[:, list(DIRECTION_ACTIONS)] = np.arange(len(DIRECTIONS))
    kinds[:, STAY] = 6
    for each in shown:
        labels = label_states(each.states)
        known = (labels.direction >= 0) & ~labels.direction_tied
        directions, actions = labels.direction[known], each.actions[known]
        np.add.at(counts, (directions, kinds[directions, np.where(actions < len(ACTION_STEPS), actions, STAY)]), 1)
    return counts


def draw_confusion_of_play(counts: Int[np.ndarray, "4 7"], title: str) -> Figure:
    """The confusion matrix, rows as shares of their steps."""
    figure = Figure(figsize=(5.8, 3.8), layout="constrained")
    axes = figure.subplots()
    totals = counts.sum(1)
    shares = counts / totals[:, None].clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(ANSWERS)), ANSWERS, fontsize=8)
    axes.set_yticks(
        range(len(DIRECTIONS)), [f"{name} ({n})" for name, n in zip(DIRECTIONS, totals, strict=True)], fontsize=8
    )
    axes.set(xlabel="action taken", ylabel="the only shortest way (steps)")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column,
            row,
            f"{share:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 0.55 else "black",
        )
    agree = (counts[np.arange(4), np.arange(4)].sum() + counts[:, 4].sum()) / max(1, counts.sum())
    axes.set_title(f"{title}\nthat way, straight or diagonal: {agree:.3f} of {counts.sum()} steps", fontsize=9)
    return figure


def draw_asked(play: AskedPlay, title: str) -> Figure:
    """Solved levels, the discounted return delivered, and steps, over what was asked for; 95 % intervals."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    figure.suptitle(f"{title}, {len(play.episodes[0].levels)} levels", fontsize=10)
    found = play.intervals()
    quantities = {"solved": "share of levels solved", "delivered": "discounted return", "episode_length": "steps"}
    for axes, (name, label) in zip(figure.subplots(1, 3), quantities.items(), strict=True):
        values = np.array([each[name] for each in found])
        places = np.arange(len(play.asked))[::-1]  # a few returns, most of them small
        axes.errorbar(places, values[:, 0], yerr=spreads(values), marker="o", capsize=3, label="delivered")
        axes.set_xticks(places, [f"{asked:g}" for asked in play.asked])
        axes.set(xlabel="discounted return asked for", ylabel=label, ylim=(0, 1.03 if name == "solved" else None))
        if name == "delivered":
            axes.plot(places, play.asked, color="grey", linestyle=":", marker=".", label="asked for")
            axes.legend(fontsize=8)
    return figure


def draw_attention(patterns: Sequence[Float[np.ndarray, "H S S"]], tokens: Sequence[str], title: str) -> Figure:
    """Attention patterns over a window: one row a block, one column a head.

    Args:
        patterns: of each block, queries down and keys across.
        tokens: kinds of token in a step, in order.
        title: above the figure.
    """
    heads = patterns[0].shape[0]
    figure = Figure(figsize=(1.2 + 2.5 * heads, 0.9 + 2.5 * len(patterns)), layout="constrained")
    figure.suptitle(f"{title}\nsquare root of attention; steps of tokens {', '.join(tokens)}", fontsize=9)
    grid = figure.subplots(len(patterns), heads, squeeze=False)
    for row, (panels, pattern) in enumerate(zip(grid, patterns, strict=True), 1):
        steps = pattern.shape[-1] // len(tokens)
        ticks = np.arange(0, steps, max(1, steps // 5))
        for head, axes in enumerate(panels):
            axes.imshow(np.sqrt(pattern[head]), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(f"block {row}, head {head}", fontsize=8)
            axes.set_xticks(ticks * len(tokens), ticks, fontsize=6)
            axes.set_yticks(ticks * len(tokens), ticks, fontsize=6)
        panels[0].set_ylabel("step that looks", fontsize=7)
    for axes in grid[-1]:
        axes.set_xlabel("step looked at", fontsize=7)
    return figure
