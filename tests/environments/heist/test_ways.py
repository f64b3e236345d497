import numpy as np

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, Maze, label_states, read_layout
from environments.heist.oracle import DIRECTION_STEPS, plan
from environments.heist.ways import wall_on_line, way


def maze_of(rows: list[str]) -> Maze:
    """Rows from the top; # is a wall, G the gem."""
    side = len(rows)
    flat = "".join(reversed(rows))
    return Maze(side, bytes(int(letter == "#") for letter in flat), (), (), flat.find("G"))


def sampled(maze: Maze, start: int, end: int) -> bool:
    """The same question by many points of the line, a hair off the corners."""
    side = maze.side
    x0, y0, x1, y1 = start % side + 0.5, start // side + 0.5, end % side + 0.5, end // side + 0.5
    for share in np.linspace(0, 1, 4001):
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        inside = min(x % 1, 1 - x % 1) > 1e-4 and min(y % 1, 1 - y % 1) > 1e-4
        if inside and maze.walls[int(y) * side + int(x)]:
            return True
    return False


def test_walls_on_the_line_as_many_points_of_it_see_them():
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(60):
        walls = bytes((rng.random(81) < 0.25).astype(np.uint8).tolist())
        maze = Maze(9, walls, (), (), -1)
        start, end = rng.choice(np.flatnonzero(np.frombuffer(walls, np.uint8) == 0), 2, replace=False).tolist()
        answers.append(wall_on_line(maze, start, end))
        assert answers[-1] == sampled(maze, start, end)
    assert 0.2 < np.mean(answers) < 0.9


def test_a_line_that_only_touches_corners_is_free():
    maze = maze_of([".#.", "#.#", ".#."])
    assert not wall_on_line(maze, 0, 8)
    assert wall_on_line(maze, 0, 2)


def test_the_straight_part_ends_at_the_turn_or_at_the_target():
    maze = maze_of(["....G", ".####", ".####", ".####", ".####"])
    found = way(maze, 0, 0)
    assert (found.straight_length, found.target_cell, found.after_target) == (4, 24, -1)
    assert found.wall_between
    beside = way(maze, 0, 20)
    assert beside.straight_length == 4
    assert not beside.wall_between
    assert way(maze, 0, 24).straight_length == 0
    assert way(maze_of(["G#.", "###", "..."]), 0, 0)[0] == -1


def test_ways_in_real_levels():
    """Against the labels of the same states, and a walk along the oracle's first moves."""
    env = VectorEnvironment(EnvironmentSettings("heist", "hard"), 64, seed=3)
    env.observe()
    states = env.get_states()
    labels = label_states(states)
    order = {0: 1, 1: 2, 2: 6}
    for row, data in enumerate(states):
        layout = read_layout(State.from_bytes(data))
        np.testing.assert_array_equal(labels.target_cell[row], labels.cells[row, labels.target[row]])
        solution = plan(layout.maze, layout.held)
        cell, first, steps = layout.player, int(labels.direction[row]), 0
        while steps < labels.path_length[row] and solution.advise(cell, layout.held).direction == first:
            dx, dy = DIRECTION_STEPS[first]
            cell, steps = cell + dy * layout.maze.side + dx, steps + 1
        assert labels.straight_length[row] == steps
        target, keys = int(labels.target[row]), {colour for colour, _ in layout.maze.locks}
        following = order.get(target, -1)
        expected = following if following == 6 or following in keys or following == -1 else 6
        assert labels.after_target[row] == expected, (ENTITIES[target], keys)
    assert (labels.straight_length > 0).all()
    env.close()
