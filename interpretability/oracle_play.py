"""Playing the oracle of heist: the yardstick for how straight an agent walks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import STAY, label_states
from interpretability.episodes import GAME_TIME_OUT, Episodes, first_states


def play_oracle(
    levels: Sequence[int] | Int[np.ndarray, " L"],
    *,
    settings: EnvironmentSettings,
    num_environments: int = 64,
    max_steps: int = GAME_TIME_OUT,
    progress: str | None = None,
) -> Episodes:
    """Play every level once by `Labels.oracle_action`, the same levels that `play_episodes` plays.

    Its steps, and not its path length in cells, are what an agent's steps can be measured against: the player has
    momentum and covers 0.34 to 0.61 cells a step. The path is the shortest in cells but the steering is plain, so a
    skilled agent may need a step or two less.

    Args:
        levels, settings, num_environments, max_steps, progress: as for `play_episodes`; of heist only.

    Raises:
        ValueError: another game.
    """
    states = first_states(levels, settings, num_environments)
    return play_oracle_from(
        states, settings=settings, num_environments=num_environments, max_steps=max_steps, progress=progress
    )


def play_oracle_from(
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    num_environments: int = 64,
    max_steps: int = GAME_TIME_OUT,
    progress: str | None = None,
) -> Episodes:
    """Play on from each saved state (a scenario, say) by `Labels.oracle_action`, to the end of its episode.

    Args:
        states: of heist, at least one; several may be of one level.
        settings, num_environments, max_steps, progress: as for `play_episodes`.

    Raises:
        ValueError: another game.
    """
    count = len(states)
    environment = VectorEnvironment(settings, min(num_environments, count))
    episodes = Episodes(
        levels=np.array([State.from_bytes(state).level_seed for state in states], dtype=np.int64),
        returns=np.zeros(count, dtype=np.float32),
        lengths=np.zeros(count, dtype=np.int64),
        solved=np.zeros(count, dtype=bool),
        cut=np.ones(count, dtype=bool),
    )
    bar = tqdm(total=count, desc=progress, unit="level", disable=progress is None, leave=False)
    try:
        for start in range(0, count, environment.num_environments):
            rows = np.arange(start, min(start + environment.num_environments, count))
            environment.set_states([states[row] for row in rows], range(len(rows)))
            environment.observe()
            for _ in range(max_steps):
                slots = np.flatnonzero(episodes.cut[rows])  # not ended yet
                if len(slots) == 0:
                    break
                actions = np.full(environment.num_environments, STAY)
                actions[slots] = label_states(environment.get_states(slots.tolist())).oracle_action
                environment.act(actions)
                reward, _, first = environment.observe()
                playing = rows[slots]
                episodes.lengths[playing] += 1
                episodes.returns[playing] += reward[slots]
                episodes.solved[playing] = first[slots] & (reward[slots] > 0)
                episodes.cut[playing] = ~first[slots]
            bar.update(len(rows))
    finally:
        bar.close()
        environment.close()
    return episodes
