"""Playing fixed levels: one episode each to its end, with or without edits, with action noise that arms share.

This is the one place where an agent is played for measurement: studies and callbacks call it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import STAY
from interpretability.frame_outputs import PlayedOutputs, played_outputs
from interpretability.row_edits import check_trials
from interpretability.state_edits import StateEdit, StateOutputs
from interpretability.statistics import Interval, bootstrap_interval, join_metrics, wilson_interval
from networks.origin import warn_of_another_game
from networks.policy import sample_actions
from networks.precision import DEFAULT_PRECISION, Precision
from networks.taps import Edit, TappedNetwork

GAME_TIME_OUT = 1_000


@dataclasses.dataclass(frozen=True)
class Episodes:
    """One episode on each of L levels.

    Attributes:
        levels: the level seeds, in the order asked for.
        returns: sum of rewards.
        lengths: steps taken.
        solved: the episode's last reward was positive (in heist: the gem was reached).
        cut: stopped by `max_steps` before the game ended it; counted as unsolved.
    """

    levels: Int[np.ndarray, " L"]
    returns: Float32[np.ndarray, " L"]
    lengths: Int[np.ndarray, " L"]
    solved: Bool[np.ndarray, " L"]
    cut: Bool[np.ndarray, " L"]

    def intervals(self) -> dict[str, Interval]:
        """`return`, `solved` and `episode_length` over the levels."""
        return {
            "return": bootstrap_interval(self.returns),
            "solved": wilson_interval(int(self.solved.sum()), len(self.solved)),
            "episode_length": bootstrap_interval(self.lengths),
        }

    def metrics(self, prefix: str) -> dict[str, float]:
        """`intervals` as `PREFIX/NAME`, each with `_low` and `_high`."""
        return join_metrics({f"{prefix}/{name}": interval for name, interval in self.intervals().items()})

    def select(self, chosen: Bool[np.ndarray, " L"]) -> "Episodes":
        """The episodes of some of the levels."""
        return Episodes(**{field.name: getattr(self, field.name)[chosen] for field in dataclasses.fields(self)})


class PlayedStep(NamedTuple):
    """What an observer is shown at each step: the n slots that still play, before their actions are taken.

    Attributes:
        slots: which they are, in ascending order.
        levels: level seed of each slot.
        steps: how many actions its episode has taken so far.
        frames: what the agent sees.
        logits: what it makes of it, with the edits, on the CPU.
        values: likewise what its value head says; NaN where it has none.
        actions: what it chose.
    """

    slots: Int[np.ndarray, " n"]
    levels: Int[np.ndarray, " n"]
    steps: Int[np.ndarray, " n"]
    frames: UInt8[np.ndarray, "n 64 64 3"]
    logits: Float[Tensor, "n A"]
    values: Float[Tensor, " n"]
    actions: Int[np.ndarray, " n"]


Observer = Callable[[PlayedStep], None]


def play_episodes(
    agent: TappedNetwork,
    levels: Sequence[int] | Int[np.ndarray, " L"],
    *,
    settings: EnvironmentSettings,
    edits: Sequence[Edit] = (),
    trials: Sequence[int] | Int[np.ndarray, " L"] | None = None,
    greedy: bool = False,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = GAME_TIME_OUT,
    precision: Precision = DEFAULT_PRECISION,
    observer: Observer | None = None,
    progress: str | None = None,
) -> Episodes:
    """Play every level once, to the end of its episode.

    A slot whose episode ends goes on with the next level, so no level is preferred for being short. The noise of
    step t on level s depends on (seed, s, t) only: two arms that differ in their edits differ in nothing else, and
    with `precision="fp32"` neither the number of slots nor the company that a level is played in matters. In bf16,
    matrix kernels round differently at different batch sizes, which can tip a close choice; two runs of one call
    are still equal.

    The global random generators of torch, numpy and Python are neither read nor moved; train and eval mode of the
    agent and the edits are as before afterwards.

    Args:
        agent: plays on the device where its parameters are.
        levels: level seeds.
        settings: game and distribution mode; its own range of levels is not used.
        edits: put in at the agent's taps, the same for every level but for edits by row (`RowEdit`);
            those that are told the states (`StateEdit`) see them.
        trials: for edits by row, which trial each level undergoes; a level may then come once for each trial.
        greedy: take the likeliest action rather than sample.
        seed: of the action noise.
        num_environments: slots played together.
        max_steps: cut an episode here. The default is the game's own time-out.
        precision: of the agent's passes; compare runs of one precision only.
        observer: called at each step with what the agent saw, computed and chose.
        progress: title of a progress bar on stderr; None shows none.

    Raises:
        ValueError: no levels, a repeated or negative one, `max_steps` or `num_environments` below 1, an edit at an
            unknown tap, another number of actions than the game has, trials that do not fit (see `check_trials`).
    """
    seeds = np.asarray(levels, dtype=np.int64)
    check_trials(agent, edits, trials, len(seeds))
    of = np.zeros(len(seeds), dtype=np.int64) if trials is None else np.asarray(trials, dtype=np.int64)
    if len(seeds) == 0 or seeds.min() < 0 or len(np.unique(np.stack([seeds, of]), axis=1).T) != len(seeds):
        raise ValueError("levels must be distinct seeds, at least one and none negative: give for example range(200)")
    if max_steps < 1 or num_environments < 1 or seed < 0:
        raise ValueError(
            f"max_steps {max_steps} and num_environments {num_environments} must be at least 1, seed {seed} at least 0"
        )
    agent.check_edits(edits)
    agent.check_actions(VectorEnvironment.num_actions)
    warn_of_another_game(agent.metadata, settings.game, settings.distribution_mode)
    environment = VectorEnvironment(settings, min(num_environments, len(seeds)))
    bar = tqdm(total=len(seeds), desc=progress, unit="level", disable=progress is None, leave=False)
    try:
        with evaluating(agent, *(edit for _, edit in edits)), torch.inference_mode():
            game = _Game(environment, seeds, None if trials is None else of, seed=seed, max_steps=max_steps, bar=bar)
            outputs_of: PlayedOutputs
            if any(isinstance(edit, StateEdit) for _, edit in edits):
                outputs_of = StateOutputs(agent, edits, environment, precision)
            else:
                outputs_of = played_outputs(agent, edits, environment.num_environments, precision)
            return game.play(outputs_of, greedy, observer)
    finally:
        bar.close()
        environment.close()


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode; every submodule's own mode is restored afterwards."""
    modes = [(module, module.training) for parent in modules for module in parent.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Game:
    """The book-keeping of a call: which slot plays which level, and what came of it."""

    def __init__(
        self, environment: VectorEnvironment, seeds: np.ndarray, trials: np.ndarray | None, *, seed: int,
        max_steps: int, bar: "tqdm[None]",
    ) -> None:  # fmt: skip
        self.environment = environment
        self.seeds, self.trials = seeds, trials
        self.max_steps = max_steps
        self.bar = bar
        slots, levels = environment.num_environments, len(seeds)
        self.noise = ActionNoise(seed, slots, environment.num_actions)
        self.playing = np.full(slots, -1)  # index into seeds; -1 is idle
        self.steps = np.zeros(slots, dtype=np.int64)
        self.totals = np.zeros(slots, dtype=np.float32)
        self.dealt = 0
        self.episodes = Episodes(
            levels=seeds,
            returns=np.zeros(levels, dtype=np.float32),
            lengths=np.zeros(levels, dtype=np.int64),
            solved=np.zeros(levels, dtype=bool),
            cut=np.zeros(levels, dtype=bool),
        )

    def play(self, outputs_of: PlayedOutputs, greedy: bool, observer: Observer | None) -> Episodes:
        environment = self.environment
        frames = self._deal(np.arange(environment.num_environments), outputs_of)
        while len(slots := np.flatnonzero(self.playing >= 0)):
            logits, values = outputs_of(frames, slots)
            uniforms = None if greedy else torch.from_numpy(self.noise(slots, self.steps[slots]))
            chosen = sample_actions(logits, uniforms).numpy()
            if observer is not None:
                levels = self.seeds[self.playing[slots]]
                observer(PlayedStep(slots, levels, self.steps[slots], frames[slots], logits, values, chosen))
            actions = np.full(environment.num_environments, STAY)
            actions[slots] = chosen
            environment.act(actions)
            outputs_of.took(slots, chosen)
            # The terminal step's reward comes beside the first frame of what is played next.
            reward, frames, first = environment.observe()
            self.steps[slots] += 1
            self.totals[slots] += reward[slots]
            ended = slots[first[slots] | (self.steps[slots] >= self.max_steps)]
            if len(ended):
                self._book(ended, reward, first)
                frames = self._deal(ended, outputs_of)
        return self.episodes

    def _book(self, ended: np.ndarray, reward: np.ndarray, first: np.ndarray) -> None:
        rows = self.playing[ended]
        self.episodes.returns[rows] = self.totals[ended]
        self.episodes.lengths[rows] = self.steps[ended]
        self.episodes.solved[rows] = first[ended] & (reward[ended] > 0)
        self.episodes.cut[rows] = ~first[ended]
        self.bar.update(len(ended))

    def _deal(self, slots: np.ndarray, outputs_of: PlayedOutputs) -> np.ndarray:
        """Give free slots the next levels, leave them idle when there are none; returns the frames to act on."""
        self.playing[slots] = -1
        chosen = slots[: len(self.seeds) - self.dealt]
        self.playing[chosen] = self.dealt + np.arange(len(chosen))
        self.dealt += len(chosen)
        self.steps[slots] = 0
        self.totals[slots] = 0
        seeds = self.seeds[self.playing[chosen]]
        self.noise.start(chosen, seeds)
        outputs_of.begin(chosen, None if self.trials is None else self.trials[self.playing[chosen]])
        self.environment.play_levels(seeds, chosen.tolist())
        return self.environment.observe()[1]


class ActionNoise:
    """Uniform numbers that depend on (seed, level, step) only: a Philox stream per level, drawn in blocks of steps.

    Args:
        seed: shared by all levels.
        slots: N.
        num_actions: A, numbers a step.
    """

    _BLOCK = 64

    def __init__(self, seed: int, slots: int, num_actions: int) -> None:
        self._seed = seed
        self._streams: dict[int, np.random.Generator] = {}
        self._blocks = np.zeros((slots, self._BLOCK, num_actions), dtype=np.float32)

    def start(self, slots: Int[np.ndarray, " n"], levels: Int[np.ndarray, " n"]) -> None:
        """Begin a level in each of the given slots."""
        for slot, level in zip(slots.tolist(), levels.tolist(), strict=True):
            self._streams[slot] = np.random.Generator(np.random.Philox(key=[self._seed, level]))

    def __call__(self, slots: Int[np.ndarray, " n"], steps: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n A"]:
        """The numbers of each slot's step; each step of a level is asked for once, in order."""
        places = steps % self._BLOCK
        for slot in slots[places == 0].tolist():
            self._streams[slot].random(out=self._blocks[slot], dtype=np.float32)
        return self._blocks[slots, places]


def first_states(
    levels: Sequence[int] | Int[np.ndarray, " L"], settings: EnvironmentSettings, num_environments: int = 64
) -> list[bytes]:
    """The saved state in which each level begins, as `play_episodes` plays it: for counting its keys and the like."""
    seeds = np.asarray(levels, dtype=np.int64)
    environment = VectorEnvironment(settings, min(num_environments, len(seeds)))
    states: list[bytes] = []
    try:
        while len(chunk := seeds[len(states) : len(states) + environment.num_environments]):
            slots = range(len(chunk))
            environment.play_levels(chunk, slots)
            states += environment.get_states(slots)
    finally:
        environment.close()
    return states
