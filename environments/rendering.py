"""Frames of saved states, as the game itself draws them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from environments.procgen import EnvironmentSettings, VectorEnvironment

_AT_ONCE = 64


def render_states(states: Sequence[bytes], settings: EnvironmentSettings) -> UInt8[np.ndarray, "N 64 64 3"]:
    """The frame of each saved or edited state.

    Args:
        states: of the settings' game and mode, at least one.
        settings: the game.
    """
    environment = VectorEnvironment(settings, min(_AT_ONCE, len(states)))
    frames: list[np.ndarray] = []
    try:
        for begin in range(0, len(states), environment.num_environments):
            part = states[begin : begin + environment.num_environments]
            environment.set_states(part, range(len(part)))
            frames.append(environment.observe()[1][: len(part)].copy())
    finally:
        environment.close()
    return np.concatenate(frames)
