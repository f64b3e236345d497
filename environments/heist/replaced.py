"""One place of a random maze, where each entity in turn is put: nothing else changes."""

from collections.abc import Sequence

import numpy as np

from environments.heist.entities import check_name
from environments.heist.layout import ENTITIES, Cell
from environments.heist.mazes import write_maze
from environments.heist.random_mazes import free_cells, maze_sizes, placed_floor, sample_cells
from environments.state import State


def replaced_entities(
    state: State, rng: np.random.Generator, names: Sequence[str], *, others: int = 0
) -> tuple[list[State], Cell]:
    """The same maze with each of the named entities in the same place, and last with nothing there.

    Such scenes need not have a solution: a lock may stand without its key, and the gem may be missing.

    Args:
        state: of heist; its level seed and theme stay.
        rng: draws walls, the place, the player's cell and what else lies about.
        names: entities but the player.
        others: so many further entities, the same in all scenes, not next to the place; drawn with repetition.

    Returns:
        The scenes, and the place.

    Raises:
        ValueError: an unknown name, the player, or more others than the smallest maze has room for.
    """
    for name in names:
        check_name(name)
    if "player" in names:
        raise ValueError("the player is no entity to put into a place: name keys, locks or the gem")
    side = state.grid.shape[0]
    floor = placed_floor(rng, side, int(rng.choice(maze_sizes(side, None))))
    cells = sample_cells(rng, free_cells(floor))
    place, player = cells[:2]
    room = [cell for cell in cells[2:] if max(abs(cell[0] - place[0]), abs(cell[1] - place[1])) > 1]
    if not 0 <= others <= len(room):
        raise ValueError(f"{others} others in a maze with room for {len(room)}: choose fewer, at least 0")
    known = [name for name in ENTITIES if name != "player"]
    drawn = rng.integers(len(known), size=others).tolist()
    around = [(known[index], cell) for index, cell in zip(drawn, room, strict=False)]
    seed = int(rng.integers(2**32))  # things lie off their cells' centres alike in all scenes
    contents = [*([(name, place)] for name in names), []]
    scenes = [write_maze(state, floor, [*around, *here], player, rng=np.random.default_rng(seed)) for here in contents]
    return scenes, place
