"""Heist: its part of the state, the shortest-path oracle, labels and scenario edits."""

from environments.heist.choices import choice_maze, keys_and_locks
from environments.heist.deconfounded import deconfound, deconfounded_states
from environments.heist.inside import inside_maze, maze_bounds
from environments.heist.labels import Labels, label_states
from environments.heist.layout import COLOURS, ENTITIES, HeistPart, Layout, Maze, read_layout
from environments.heist.mazes import corner_maze, cross_maze, draw_maze, empty_room, t_maze, write_maze
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
from environments.heist.playable import check_playable
from environments.heist.scatter import scatter_player
from environments.heist.scenarios import (
    add_entity,
    close_walls,
    copy_state,
    find_entity,
    give_key,
    move_entity,
    occupied_cells,
    open_walls,
    place_player,
    recolour,
    recolour_entity,
    remove_entity,
    swap_entities,
    take_key,
)
from environments.heist.variants import mirror, pickup_order, reorder, rotate, swap_target, walk_square

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
    "add_entity",
    "advise",
    "check_playable",
    "choice_maze",
    "close_walls",
    "copy_state",
    "corner_maze",
    "cross_maze",
    "deconfound",
    "deconfounded_states",
    "draw_maze",
    "empty_room",
    "find_entity",
    "give_key",
    "inside_maze",
    "keys_and_locks",
    "label_states",
    "main_action",
    "maze_bounds",
    "mirror",
    "move_entity",
    "occupied_cells",
    "open_walls",
    "pickup_order",
    "place_player",
    "plan",
    "read_layout",
    "recolour",
    "recolour_entity",
    "remove_entity",
    "reorder",
    "rotate",
    "scatter_player",
    "steer",
    "swap_entities",
    "swap_target",
    "t_maze",
    "take_key",
    "walk_square",
    "write_maze",
]
