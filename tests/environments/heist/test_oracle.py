"""The oracle against a naive forward search, against the game, and in mazes drawn by hand."""

from collections import deque

import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, Layout, Maze, advise, label_states, read_layout
from environments.heist.oracle import DIRECTION_STEPS, DIRECTIONS


def draw(*rows: str, held: int = 0) -> Layout:
    """A layout from rows of characters, the top row first: #, space, P player, E exit, bgr keys, BGR locks."""
    side = len(rows)
    walls, keys, locks, gem, player = bytearray(side * side), [], [], -1, 0
    for top, row in enumerate(rows):
        for x, what in enumerate(row):
            cell = (side - 1 - top) * side + x
            walls[cell] = what == "#"
            if what in "bgr":
                keys.append(("bgr".index(what), cell))
            if what in "BGR":
                locks.append(("BGR".index(what), cell))
            gem = cell if what == "E" else gem
            player = cell if what == "P" else player
    maze = Maze(side, bytes(walls), tuple(keys), tuple(locks), gem)
    return Layout(maze, held, (player % side + 0.5, player // side + 0.5))


def naive_length(layout: Layout) -> int:
    """Moves to the gem by a forward search over (cell, held), written without the oracle's code."""
    maze = layout.maze
    start = (layout.player, layout.held)
    seen, queue = {start: 0}, deque([start])
    while queue:
        cell, held = queue.popleft()
        if cell == maze.gem:
            return seen[cell, held]
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            x, y = cell % maze.side + dx, cell // maze.side + dy
            other = y * maze.side + x
            if not (0 <= x < maze.side and 0 <= y < maze.side) or maze.walls[other]:
                continue
            if any(where == other and not held >> colour & 1 for colour, where in maze.locks):
                continue
            now = held
            for colour, where in maze.keys:
                if where == other:
                    now |= 1 << colour
            if (other, now) not in seen:
                seen[other, now] = seen[cell, held] + 1
                queue.append((other, now))
    return -1


def test_natural_levels_agree_with_a_naive_search():
    for mode in ("easy", "hard"):
        env = VectorEnvironment(EnvironmentSettings("heist", mode), 48, seed=3)
        rng = np.random.default_rng(0)
        for _ in range(3):
            for _ in range(15):
                env.observe()
                env.act(
                    np.where(
                        rng.random(48) < 0.3, rng.integers(9, size=48), label_states(env.get_states()).oracle_action
                    )
                )
            env.observe()
            for data in env.get_states():
                layout = read_layout(State.from_bytes(data))
                advice = advise(layout)
                assert advice.total_length == naive_length(layout)
                for bit, (dx, dy) in enumerate(DIRECTION_STEPS):  # the mask holds exactly the moves that gain one
                    cell = layout.player + dy * layout.maze.side + dx
                    if layout.maze.walls[cell] if 0 <= cell < layout.maze.side**2 else True:
                        continue
                    if any(where == cell and not layout.held >> colour & 1 for colour, where in layout.maze.locks):
                        continue
                    keys = sum(1 << colour for colour, where in layout.maze.keys if where == cell)
                    after = Layout(
                        layout.maze, layout.held | keys, (cell % layout.maze.side + 0.5, cell // layout.maze.side + 0.5)
                    )
                    gains = naive_length(after) == advice.total_length - 1
                    assert gains == bool(advice.directions >> bit & 1)
        env.close()


def test_random_edited_mazes_agree_with_a_naive_search():
    rng = np.random.default_rng(1)
    solvable = 0
    for _ in range(300):
        cells = rng.choice(49, size=9, replace=False)
        walls = rng.random(49) < 0.25
        walls[cells] = False
        maze = Maze(
            7,
            walls.astype(np.uint8).tobytes(),
            tuple((int(rng.integers(3)), int(cell)) for cell in cells[:3]),
            tuple((int(rng.integers(3)), int(cell)) for cell in cells[3:7]),
            int(cells[7]),
        )
        layout = Layout(maze, int(rng.integers(8)), (cells[8] % 7 + 0.5, cells[8] // 7 + 0.5))
        advice = advise(layout)
        assert advice.total_length == naive_length(layout)
        solvable += advice.total_length >= 0
    assert 100 < solvable < 300


def test_a_key_that_opens_nothing_is_passed_by():
    advice = advise(draw("#####", "#rP #", "### #", "#E  #", "#####"))
    assert (ENTITIES[advice.target], DIRECTIONS[advice.direction]) == ("gem", "right")
    assert advice.path_length == advice.total_length == 5


def test_a_lock_whose_key_is_nowhere_is_a_wall():
    advice = advise(draw("#####", "#P  #", "#B# #", "#E  #", "#####"))
    assert (advice.path_length, DIRECTIONS[advice.direction]) == (6, "right")
    assert advise(draw("#####", "#P###", "#B###", "#E###", "#####")).target == -1


def test_reordered_locks_are_solved_in_the_order_they_need():
    layout = draw("#######", "#P r###", "### ###", "#bR   #", "#####B#", "#E    #", "#######")
    advice = advise(layout)
    assert ENTITIES[advice.target] == "red_key"
    assert advice.total_length == naive_length(layout) > 0


def test_a_held_key_is_not_looked_for():
    advice = advise(draw("#####", "#b P#", "###B#", "#E  #", "#####", held=1))
    assert (ENTITIES[advice.target], DIRECTIONS[advice.direction]) == ("gem", "down")


def test_ties_are_marked():
    assert advise(draw("#####", "#P  #", "# # #", "#  E#", "#####")).tied
    assert not advise(draw("#####", "#P  #", "# ###", "#  E#", "#####")).tied


@pytest.mark.parametrize("mode", ["easy", "hard"])
def test_the_oracle_solves_400_levels(mode):
    count = 400
    env = VectorEnvironment(EnvironmentSettings("heist", mode), count, seed=11)
    running, solved = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    env.observe()
    for _ in range(400):
        slots = np.flatnonzero(running)
        actions = np.full(count, 4)
        actions[slots] = label_states(env.get_states(slots)).oracle_action
        env.act(actions)
        reward, _, first = env.observe()
        solved |= running & first & (reward > 0)
        running &= ~first
        if not running.any():
            break
    env.close()
    assert solved.all()
