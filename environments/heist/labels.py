"""Labels of frames: what the game and its shortest solution say about each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from environments.heist.layout import ENTITIES, read_layout
from environments.heist.oracle import advise, main_action, steer
from environments.heist.ways import way
from environments.state import State

_GEM = ENTITIES.index("gem")
_PLAYER = ENTITIES.index("player")


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of N frames; cells are (x, y) with y upwards, -1 where there is none.

    Attributes:
        level: level seed.
        world_dim: side of the world in cells.
        cells: cell of each entity of `ENTITIES`; picked-up keys and opened locks have none. Of several of one name,
            which only scenarios have, that of the uppermost.
        position: the player's centre (x, y) in cells, with fractions.
        held: held keys by colour.
        target: index into `ENTITIES` of the next pickup on the shortest full solution.
        direction: index into `DIRECTIONS` of the first move towards it; the lowest where several are as short.
        direction_tied: whether several first moves are as short: leave such frames out of direction scores.
        directions: bit mask over `DIRECTIONS` of all shortest first moves.
        target_cell: cell of the target.
        after_target: index into `ENTITIES` of the pickup after the target, -1 where the target is the gem.
        path_length: moves to the target.
        straight_length: moves along `direction` before the first turn or the target.
        wall_between: whether a wall stands on the straight line between the cells of player and target.
        total_length: moves to the gem along the full solution.
        oracle_action: procgen action that steers along the solution, diagonals that correct sub-cell offsets included.
        main_action: procgen action of `direction` alone.
    """

    level: Int[np.ndarray, " N"]
    world_dim: Int[np.ndarray, " N"]
    cells: Int[np.ndarray, "N K 2"]
    position: Float[np.ndarray, "N 2"]
    held: Bool[np.ndarray, "N 3"]
    target: Int[np.ndarray, " N"]
    direction: Int[np.ndarray, " N"]
    direction_tied: Bool[np.ndarray, " N"]
    directions: Int[np.ndarray, " N"]
    target_cell: Int[np.ndarray, "N 2"]
    after_target: Int[np.ndarray, " N"]
    path_length: Int[np.ndarray, " N"]
    straight_length: Int[np.ndarray, " N"]
    wall_between: Bool[np.ndarray, " N"]
    total_length: Int[np.ndarray, " N"]
    oracle_action: Int[np.ndarray, " N"]
    main_action: Int[np.ndarray, " N"]


def label_states(states: Sequence[bytes]) -> Labels:
    """Label saved heist states.

    Raises:
        ValueError: a state is cut short or of another game.
    """
    count = len(states)
    cells = np.full((count, len(ENTITIES), 2), -1, dtype=np.int16)
    numbers = np.empty((count, 13), dtype=np.int64)
    masks = np.empty((count, 2), dtype=np.int64)
    position = np.empty((count, 2))
    for row, data in enumerate(states):
        state = State.from_bytes(data)
        layout = read_layout(state)
        maze = layout.maze
        advice = advise(layout)
        ahead = way(maze, layout.held, layout.player)
        numbers[row] = (
            state.level_seed,
            maze.side,
            advice.target,
            advice.direction,
            advice.path_length,
            advice.total_length,
            steer(layout, advice),
            main_action(advice),
            advice.tied,
            *ahead,
        )
        masks[row] = layout.held, advice.directions
        position[row] = layout.position
        places = [(colour, cell) for colour, cell in maze.keys] + [(3 + colour, cell) for colour, cell in maze.locks]
        for entity, cell in [*places, (_GEM, maze.gem), (_PLAYER, layout.player)]:
            if cell >= 0 and entity < len(ENTITIES):
                cells[row, entity] = cell % maze.side, cell // maze.side
    held = (masks[:, :1] >> np.arange(3)) & 1
    level, side, target, direction, path_length, total_length, steered, main, tied, *ahead_columns = numbers.T
    where, wall, straight, after = ahead_columns
    known = (where >= 0)[:, None]
    return Labels(
        level=level,
        world_dim=side,
        cells=cells,
        position=position,
        held=held.astype(bool),
        target=target,
        direction=direction,
        direction_tied=tied.astype(bool),
        directions=masks[:, 1],
        target_cell=np.where(known, np.stack([where % side, where // side], 1), -1),
        after_target=after,
        path_length=path_length,
        straight_length=straight,
        wall_between=wall.astype(bool),
        total_length=total_length,
        oracle_action=steered,
        main_action=main,
    )
