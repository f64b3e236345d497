"""Playing on from heist's saved states, looking at the state after every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from tqdm import tqdm

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import STAY, HeistPart
from interpretability.episodes import ActionNoise, evaluating
from interpretability.frame_outputs import FrameOutputs
from interpretability.row_edits import check_trials
from networks.policy import sample_actions
from networks.precision import DEFAULT_PRECISION, Precision
from networks.taps import Edit, TappedAgent

Look = Callable[[Int[np.ndarray, " n"], list[bytes]], Bool[np.ndarray, " n"]]
"""Shown at each step the numbers of the episodes that go on, and their states; says which are to stop."""


@dataclass(frozen=True)
class SavedPlay:
    """How N episodes went.

    Attributes:
        gem: whether the gem was reached, which ends the level.
        steps: actions taken.
        actions: which they were.
    """

    gem: Bool[np.ndarray, " N"]
    steps: Int[np.ndarray, " N"]
    actions: list[list[int]]


def play_saved(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    edits: Sequence[Edit] = (),
    trials: Sequence[int] | Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 100,
    precision: Precision = DEFAULT_PRECISION,
    look: Look | None = None,
    progress: str | None = None,
) -> SavedPlay:
    """Play on from saved states, sampling actions, each to the gem, to where `look` stops it, or to `max_steps`.

    The noise of a step depends on (seed, level seed of the state, step) only, so that arms which differ in their
    edits, or in what is done to the state, differ in nothing else. Global random generators are left alone.

    Args:
        agent, edits, precision: as for `play_episodes`.
        states: of heist, at least one; one may come several times.
        settings: heist's; its levels are not used.
        trials: for edits by row (`RowEdit`), which trial each state undergoes.
        seed: of the action noise.
        num_environments: states played together.
        max_steps: stop here.
        look: see `Look`.
        progress: title of a progress bar; None shows none.

    Raises:
        ValueError: no states, one of another game, numbers below 1, or trials that do not fit (see `check_trials`).
    """
    if len(states) == 0 or num_environments < 1 or max_steps < 1 or seed < 0:
        raise ValueError(
            f"{len(states)} states, num_environments {num_environments} and max_steps {max_steps} must be at least 1, "
            f"seed {seed} at least 0"
        )
    agent.check_edits(edits)
    check_trials(agent, edits, trials, len(states))
    known = None if trials is None else np.asarray(trials, dtype=np.int64)
    seed_of = {state: _level(state) for state in set(states)}
    seeds = np.array([seed_of[state] for state in states])
    count = len(states)
    gem, steps = np.zeros(count, dtype=bool), np.zeros(count, dtype=np.int64)
    actions = [list[int]() for _ in range(count)]
    environment = VectorEnvironment(settings, min(num_environments, count))
    slots_in_all = environment.num_environments
    noise = ActionNoise(seed, slots_in_all, environment.num_actions)
    outputs_of = FrameOutputs(agent, edits, slots_in_all, precision)
    row = np.full(slots_in_all, -1)
    waiting = list(range(count))[::-1]

    def deal(free: np.ndarray) -> None:
        row[free] = -1
        chosen = free[: len(waiting)]
        row[chosen] = [waiting.pop() for _ in chosen]
        environment.set_states([states[index] for index in row[chosen]], chosen.tolist())
        noise.start(chosen, seeds[row[chosen]])
        outputs_of.begin(chosen, None if known is None else known[row[chosen]])

    bar = tqdm(total=count, desc=progress, unit="state", disable=progress is None, leave=False)
    try:
        with evaluating(agent, *(edit for _, edit in edits)), torch.inference_mode():
            deal(np.arange(slots_in_all))
            frames = environment.observe()[1]
            while len(slots := np.flatnonzero(row >= 0)):
                rows = row[slots]
                chosen = sample_actions(
                    outputs_of(frames, slots)[0], torch.from_numpy(noise(slots, steps[rows]))
                ).numpy()
                taken = np.full(slots_in_all, STAY)
                taken[slots] = chosen
                environment.act(taken)
                reward, frames, first = environment.observe()
                steps[rows] += 1
                for index, action in zip(rows, chosen.tolist(), strict=True):
                    actions[index].append(action)
                gem[rows[first[slots] & (reward[slots] > 0)]] = True
                stop = first[slots] | (steps[rows] >= max_steps)
                if look is not None:
                    going = ~first[slots]
                    stop[going] |= look(rows[going], environment.get_states(slots[going].tolist()))
                done = slots[stop]
                if len(done):
                    bar.update(len(done))
                    deal(done)
                    frames = environment.observe()[1]
    finally:
        bar.close()
        environment.close()
    return SavedPlay(gem, steps, actions)


def _level(state: bytes) -> int:
    parsed = State.from_bytes(state)
    HeistPart.from_tail(parsed.tail)
    return parsed.level_seed
