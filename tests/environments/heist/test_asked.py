import numpy as np
import pytest

from environments import EnvironmentSettings, State
from environments.heist import (
    DIRECTIONS,
    choice_maze,
    cross_maze,
    find_entity,
    label_states,
    occupied_cells,
    read_layout,
)
from environments.heist.asked import anywhere, label_asked, sole_target
from environments.state import WALL
from interpretability.episodes import first_states


@pytest.fixture(scope="module")
def bases() -> list[State]:
    return [State.from_bytes(data) for data in first_states(range(8), EnvironmentSettings())]


def test_the_way_to_each_entity_of_a_cross_is_its_arm(bases: list[State]) -> None:
    arms = {"left": "blue_key", "right": "red_key", "up": "gem"}
    cross = cross_maze(bases[0], arms, length=2)
    for direction, name in arms.items():
        labels = label_asked([cross], name)
        assert DIRECTIONS[labels.direction[0]] == direction
        assert labels.path_length[0] == 2
        assert not labels.direction_tied[0]


def test_other_entities_are_walls_on_the_way(bases: list[State]) -> None:
    """Compared with the walk over the free cells of the maze that was not edited."""
    for number, base in enumerate(bases):
        maze = choice_maze(base, np.random.default_rng(number), entities=("green_key", "red_key"))
        row = find_entity(maze, "red_key")
        asked = (int(maze.entities["x"][row]), int(maze.entities["y"][row]))
        edited = sole_target(maze, "red_key")
        for cell, names in occupied_cells(maze).items():
            assert (edited.grid[cell[1], cell[0]] == WALL) == (names not in (["player"], ["red_key"]))
        assert occupied_cells(edited)[asked] == ["gem"]
        assert label_asked([maze], "red_key").directions[0] != label_asked([maze], "green_key").directions[0]
    with pytest.raises(ValueError, match="cannot be asked for"):
        sole_target(bases[0], "player")


def test_players_are_put_where_they_can_walk_to_and_touch_nothing(bases: list[State]) -> None:
    rng = np.random.default_rng(0)
    maze = choice_maze(bases[0], rng, entities=("blue_key", "gem"), size=9)
    placed = [anywhere(maze, rng) for _ in range(40)]
    cells = set()
    for state in placed:
        layout = read_layout(state)
        assert not layout.maze.walls[layout.player]
        assert occupied_cells(state)[layout.player % 9, layout.player // 9] == ["player"]
        cells.add(layout.player)
    assert len(cells) > 5
    labels = label_states([state.to_bytes() for state in placed])
    assert not labels.held.any()
    assert (label_asked(placed, "gem").directions > 0).all(), "no wall and no entity shuts them in"
