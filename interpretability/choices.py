"""Playing heist's saved states until an entity is touched: which one does the agent fetch first?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from tqdm import tqdm

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import COLOURS, ENTITIES, HeistPart
from interpretability.episodes import STAY, ActionNoise, evaluating
from interpretability.frame_outputs import FrameOutputs
from networks.policy import sample_actions
from networks.precision import Precision
from networks.taps import Edit, TappedAgent

GEM = ENTITIES.index("gem")
NOTHING = -1


@dataclass(frozen=True)
class Choices:
    """What was touched first from each of N states.

    Attributes:
        touched: index into `ENTITIES` of the first key or the gem; -1 where none was within the steps.
        steps: actions taken until then.
        after: the state just after a key was touched; empty where none was, or the gem ended the level.
        actions: taken from each state.
    """

    touched: Int[np.ndarray, " N"]
    steps: Int[np.ndarray, " N"]
    after: list[bytes]
    actions: list[list[int]]


def play_choices(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    edits: Sequence[Edit] = (),
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 100,
    precision: Precision = "bf16",
    progress: str | None = None,
) -> Choices:
    """Play on from saved states, sampling actions, each until a key or the gem is touched.

    The noise of a step depends on (seed, level seed of the state, step) only, so that arms which differ in their
    edits, or in what is done to the state, differ in nothing else. Global random generators are left alone.

    Args:
        agent, edits, precision: as for `play_episodes`.
        states: of heist, at least one.
        settings: heist's; its levels are not used.
        seed: of the action noise.
        num_environments: states played together.
        max_steps: stop here without a touch.
        progress: title of a progress bar; None shows none.

    Raises:
        ValueError: no states, one of another game, or numbers below 1.
    """
    return _play(agent, states, settings, edits, seed, num_environments, max_steps, precision, progress, True)


def play_to_end(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 500,
    precision: Precision = "bf16",
    progress: str | None = None,
) -> Bool[np.ndarray, " N"]:
    """Whether the unedited agent reaches the gem from each state; arguments and errors as for `play_choices`."""
    if len(states) == 0:
        return np.zeros(0, dtype=bool)
    played = _play(agent, states, settings, (), seed, num_environments, max_steps, precision, progress, False)
    return played.touched == GEM


def _play(
    agent: TappedAgent,
    states: Sequence[bytes],
    settings: EnvironmentSettings,
    edits: Sequence[Edit],
    seed: int,
    num_environments: int,
    max_steps: int,
    precision: Precision,
    progress: str | None,
    keys_count: bool,
) -> Choices:
    if len(states) == 0 or num_environments < 1 or max_steps < 1 or seed < 0:
        raise ValueError(
            f"{len(states)} states, num_environments {num_environments} and max_steps {max_steps} must be at least 1, "
            f"seed {seed} at least 0"
        )
    agent.check_taps([tap for tap, _ in edits])
    parsed = [State.from_bytes(state) for state in states]
    held = [HeistPart.from_tail(state.tail).has_keys for state in parsed]
    seeds = np.array([state.level_seed for state in parsed])
    count = len(states)
    touched, steps = np.full(count, NOTHING), np.zeros(count, dtype=np.int64)
    after, actions = [b""] * count, [list[int]() for _ in range(count)]
    environment = VectorEnvironment(settings, min(num_environments, count))
    slots_in_all = environment.num_environments
    noise = ActionNoise(seed, slots_in_all, environment.num_actions)
    row = np.full(slots_in_all, -1)
    waiting = list(range(count))[::-1]

    def deal(free: np.ndarray) -> None:
        row[free] = -1
        chosen = free[: len(waiting)]
        row[chosen] = [waiting.pop() for _ in chosen]
        environment.set_states([states[index] for index in row[chosen]], chosen.tolist())
        noise.start(chosen, seeds[row[chosen]])

    bar = tqdm(total=count, desc=progress, unit="state", disable=progress is None, leave=False)
    try:
        with evaluating(agent, *(edit for _, edit in edits)), torch.inference_mode():
            deal(np.arange(slots_in_all))
            outputs_of = FrameOutputs(agent, edits, slots_in_all, precision)
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
                touched[rows[first[slots] & (reward[slots] > 0)]] = GEM
                if keys_count:
                    going = slots[~first[slots]]
                    for index, state in zip(row[going], environment.get_states(going.tolist()), strict=True):
                        if (colour := _new_key(state, held[index])) is not None:
                            touched[index], after[index] = colour, state
                done = slots[first[slots] | (steps[rows] >= max_steps) | (touched[rows] >= 0)]
                if len(done):
                    bar.update(len(done))
                    deal(done)
                    frames = environment.observe()[1]
    finally:
        bar.close()
        environment.close()
    return Choices(touched, steps, after, actions)


def retrace(
    states: Sequence[bytes],
    actions: Sequence[Sequence[int]],
    settings: EnvironmentSettings,
    *,
    num_environments: int = 64,
) -> Iterator[tuple[int, int, UInt8[np.ndarray, "64 64 3"], bytes]]:
    """The way through the given actions again, without the agent: (row, step, frame, state) before each action.

    Args:
        states: of heist.
        actions: taken from each of them.
        settings: heist's.
        num_environments: states followed together.

    Raises:
        ValueError: not as many lists of actions as states.
    """
    if len(states) != len(actions):
        raise ValueError(f"{len(states)} states and {len(actions)} lists of actions: give one list a state")
    environment = VectorEnvironment(settings, max(1, min(num_environments, len(states))))
    try:
        for begin in range(0, len(states), environment.num_environments):
            rows = range(begin, min(begin + environment.num_environments, len(states)))
            environment.set_states([states[row] for row in rows], range(len(rows)))
            for step in range(max(len(actions[row]) for row in rows)):
                frames = environment.observe()[1]
                going = [row for row in rows if step < len(actions[row])]
                slots = [row - begin for row in going]
                for row, slot, state in zip(going, slots, environment.get_states(slots), strict=True):
                    yield row, step, frames[slot].copy(), state
                taken = np.full(environment.num_environments, STAY)
                taken[slots] = [actions[row][step] for row in going]
                environment.act(taken)
            environment.observe()
    finally:
        environment.close()


def _new_key(state: bytes, held: Sequence[bool]) -> int | None:
    """Colour of a key that was not held before; of the state only its last bytes are read, which hold the ring."""
    end = len(state) - 4
    now = np.frombuffer(state[end - 4 * len(held) : end], "<i4")
    return next((colour for colour in range(min(len(held), len(COLOURS))) if now[colour] and not held[colour]), None)
