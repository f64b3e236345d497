"""Heist: its part of the state, the shortest-path oracle, labels and scenario edits."""

from environments.heist.inside import inside_maze, maze_bounds
from environments.heist.labels import Labels, label_states
from environments.heist.layout import COLOURS, ENTITIES, HeistPart, Layout, Maze, read_layout
from environments.heist.oracle import (
    DIRECTION_ACTIONS,
    DIRECTION_STEPS,
    DIRECTIONS,
    Advice,
    advise,
    main_action,
    plan,
    steer,
)
from environments.heist.scatter import scatter_player
from environments.heist.scenarios import copy_state, find_entity, move_entity

__all__ = [
    "COLOURS",
    "DIRECTIONS",
    "DIRECTION_ACTIONS",
    "DIRECTION_STEPS",
    "ENTITIES",
    "Advice",
    "HeistPart",
    "Labels",
    "Layout",
    "Maze",
    "advise",
    "copy_state",
    "find_entity",
    "inside_maze",
    "label_states",
    "main_action",
    "maze_bounds",
    "move_entity",
    "plan",
    "read_layout",
    "scatter_player",
    "steer",
]
