"""Playing heist's saved states until an entity is touched: which one does the agent fetch first?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt8

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import COLOURS, ENTITIES, STAY, HeistPart
from interpretability.saved_play import play_saved
from networks.precision import DEFAULT_PRECISION, Precision
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
    trials: Sequence[int] | Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 100,
    precision: Precision = DEFAULT_PRECISION,
    progress: str | None = None,
) -> Choices:
    """Play on from saved states, sampling actions, each until a key or the gem is touched.

    Args:
        agent, states, settings, edits, trials, seed, num_environments, precision, progress: as for `play_saved`.
        max_steps: stop here without a touch.

    Raises:
        ValueError: as for `play_saved`.
    """
    held = {state: HeistPart.from_tail(State.from_bytes(state).tail).has_keys for state in set(states)}
    touched, after = np.full(len(states), NOTHING), [b""] * len(states)

    def look(rows: Int[np.ndarray, " n"], now: list[bytes]) -> Bool[np.ndarray, " n"]:
        for row, state in zip(rows, now, strict=True):
            if (colour := _new_key(state, held[states[row]])) is not None:
                touched[row], after[row] = colour, state
        return touched[rows] >= 0

    played = play_saved(
        agent, states, settings=settings, edits=edits, trials=trials, seed=seed, num_environments=num_environments,
        max_steps=max_steps, precision=precision, look=look, progress=progress,
    )  # fmt: skip
    touched[played.gem] = GEM
    return Choices(touched, played.steps, after, played.actions)


def play_to_end(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 500,
    precision: Precision = DEFAULT_PRECISION,
    progress: str | None = None,
) -> Bool[np.ndarray, " N"]:
    """Whether the unedited agent reaches the gem from each state; arguments and errors as for `play_saved`."""
    if len(states) == 0:
        return np.zeros(0, dtype=bool)
    return play_saved(
        agent, states, settings=settings, seed=seed, num_environments=num_environments, max_steps=max_steps,
        precision=precision, progress=progress,
    ).gem  # fmt: skip


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
