"""The games: vectorised procgen environments, their states, and what heist's states say. Knows no network."""

from environments.levels import (
    TEST_LEVELS,
    TRAINING_COUNT,
    TRAINING_START,
    VALIDATION_LEVELS,
    held_out_levels,
    refuse_held_out,
)
from environments.procgen import FRAME_SHAPE, NUM_ACTIONS, EnvironmentSettings, VectorEnvironment
from environments.rendering import render_states
from environments.state import State

__all__ = [
    "FRAME_SHAPE",
    "NUM_ACTIONS",
    "TEST_LEVELS",
    "TRAINING_COUNT",
    "TRAINING_START",
    "VALIDATION_LEVELS",
    "EnvironmentSettings",
    "State",
    "VectorEnvironment",
    "held_out_levels",
    "refuse_held_out",
    "render_states",
]
