"""Films of play from saved states, the same mazes side by side as each arm played them."""

from collections.abc import Mapping, Sequence

import numpy as np

from environments import EnvironmentSettings
from environments.heist import ENTITIES
from interpretability.choices import Choices, retrace
from interpretability.films import Film, film_of_replays
from interpretability.replay import Replay


def film_of_actions(
    states: Sequence[bytes],
    played: Mapping[str, Sequence[Sequence[int]]],
    captions: Mapping[str, Sequence[str]],
    settings: EnvironmentSettings,
    max_steps: int = 60,
) -> Film:
    """The first steps of what each arm did from each state; the tiles of a state stand next to each other.

    Args:
        states: in which the mazes begin; at least one.
        played: by the arm's name the actions taken from each state, at least one each.
        captions: by the arm's name what stands under each state's tile, behind that name.
        settings: heist's.
        max_steps: the first so many of each are shown.
    """
    frames: dict[tuple[int, str], list[np.ndarray]] = {}
    for arm, actions in played.items():
        for row, _, frame, _ in retrace(states, actions, settings):
            frames.setdefault((row, arm), []).append(frame)
    replays, words = [], []
    for row in range(len(states)):
        for arm, actions in played.items():
            shown = np.stack(frames[row, arm])
            rewards = np.zeros(len(shown), dtype=np.float32)
            replays.append(Replay(row, np.array(actions[row]), shown, [], rewards, ended=False))
            words.append(f"{arm}: {captions[arm][row]}")
    return film_of_replays(replays, words, max_steps)


def choice_film(
    states: Sequence[bytes], played: Mapping[str, Choices], settings: EnvironmentSettings, max_steps: int = 60
) -> Film:
    """The same mazes side by side as each arm played them, with what it touched; arguments as for `film_of_actions`."""
    captions = {
        arm: [ENTITIES[index].replace("_", " ") if index >= 0 else "nothing" for index in choices.touched.tolist()]
        for arm, choices in played.items()
    }
    return film_of_actions(
        states, {arm: choices.actions for arm, choices in played.items()}, captions, settings, max_steps
    )
