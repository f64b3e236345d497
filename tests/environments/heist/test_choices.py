"""Properties of random mazes over many seeds, against a naive search, and their play in the game."""

from collections import Counter

import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import (
    check_playable,
    choice_maze,
    keys_and_locks,
    label_states,
    occupied_cells,
    read_layout,
)
from environments.heist.random_mazes import open_ways, random_floor
from environments.state import WALL
from interpretability.oracle_play import play_oracle_from

KEYS = ("blue_key", "green_key", "red_key")


@pytest.fixture(scope="module")
def env():
    env = VectorEnvironment(EnvironmentSettings(num_threads=0), 32, seed=5)
    env.observe()
    yield env
    env.close()


@pytest.fixture(scope="module")
def states(env) -> list[State]:
    return [State.from_bytes(data) for data in env.get_states()]


def first_moves(state: State) -> dict[str, tuple[int, tuple[int, int]]]:
    """Of all that can be walked up to without passing another thing: moves to it, and the first cell on the way."""
    things = occupied_cells(state)
    start = next(cell for cell, names in things.items() if names == ["player"])
    side = state.grid.shape[0]
    found = {}
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        branch = (start[0] + dx, start[1] + dy)
        seen, edge, moves = {start}, {branch}, 0
        while edge:
            moves += 1
            edge = {c for c in edge if min(c) >= 0 and max(c) < side and state.grid[c[1], c[0]] != WALL} - seen
            seen |= edge
            for cell in sorted(edge):
                if cell in things:
                    found[things[cell][0]] = moves, branch
                    edge.discard(cell)
            edge = {(x + dx, y + dy) for x, y in edge for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))}
    return found


@pytest.mark.parametrize(
    ("entities", "count"),
    [
        (("blue_key", "red_key"), 300),
        (("green_key", "red_key"), 100),
        (("blue_key", "gem"), 100),
        (KEYS, 60),
        (("red_key", "green_key", "gem"), 60),
        ((*KEYS, "gem"), 20),
    ],
)
def test_each_entity_is_a_free_choice(states, entities, count):
    nearest, walls, ties = Counter(), set(), 0
    for seed in range(count):
        base = states[seed % len(states)]
        made = choice_maze(base, np.random.default_rng(seed), entities=entities)
        found = first_moves(made)
        assert set(entities) <= set(found), "each can be walked up to past nothing else"
        moves = {name: found[name][0] for name in entities}
        assert len({found[name][1] for name in entities}) == len(entities), "each by another first move"
        assert 2 <= min(moves.values()) <= 8
        assert max(moves.values()) - min(moves.values()) <= 1
        check_playable(made)
        layout = read_layout(made)
        assert sorted(c for c, _ in layout.maze.keys) == sorted(c for c, _ in layout.maze.locks)
        if "gem" not in entities:
            assert "gem" not in found, "the gem is behind locks"
        least = [name for name in entities if moves[name] == min(moves.values())]
        ties += len(least) > 1
        if len(least) == 1:
            nearest[least[0]] += 1
        walls.add(made.grid.tobytes())
        assert made.level_seed == base.level_seed
    assert len(walls) > 0.9 * count
    if count >= 100:  # no entity is nearer on average: 5 standard deviations of a fair coin
        total = sum(nearest.values())
        assert total > 20
        assert abs(nearest[entities[0]] - total / 2) < 2.5 * total**0.5


def test_choices_depend_on_their_seed_alone(states):
    made = [choice_maze(states[0], np.random.default_rng(seed)).to_bytes() for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_distances_are_uniform_and_sizes_as_asked(states):
    distances = Counter()
    for seed in range(400):
        made = choice_maze(states[0], np.random.default_rng(seed), distances=(3, 6), spread=0, size=9)
        assert (made.grid != WALL).any(0).all()
        moves = {found[0] for name, found in first_moves(made).items() if name.endswith("key")}
        assert len(moves) == 1
        distances.update(moves)
    assert sorted(distances) == [3, 4, 5, 6]
    assert all(60 < count < 140 for count in distances.values())


def test_random_mazes_round_trip_and_are_solved_in_the_game(env, states):
    built = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        built.append(choice_maze(states[seed], rng, entities=((KEYS, KEYS[:2], ("gem", "red_key"))[seed % 3])))
        built.append(keys_and_locks(states[seed], rng, keys=["green", "red"], locks=["red"] * (seed % 3)))
    data = [made.to_bytes() for made in built]
    env.set_states(data)
    env.observe()
    assert env.get_states() == data
    assert play_oracle_from(data, settings=env.settings).solved.all()


@pytest.mark.parametrize(
    ("keys", "locks", "held"),
    [
        (["blue", "green", "red"], ["green"], []),
        (["red"], ["red", "red", "red"], []),
        (["red"], ["red", "blue"], ["blue"]),
        (["red", "red"], [], []),
        ([], [], []),
    ],
)
def test_keys_and_locks_in_any_numbers(states, keys, locks, held):
    for seed in range(40):
        made = keys_and_locks(states[seed % 32], np.random.default_rng(seed), keys=keys, locks=locks, held=held)
        names = [name for (name,) in occupied_cells(made).values()]
        wanted = [f"{c}_key" for c in keys] + [f"{c}_lock" for c in locks] + ["gem", "player"]
        assert sorted(names) == sorted(wanted)
        found = first_moves(made)
        if locks:
            assert "gem" not in found
        assert label_states([made.to_bytes()]).target[0] >= 0
        assert read_layout(made).held == sum(1 << ("blue", "green", "red").index(c) for c in held)


@pytest.mark.parametrize("fork", [0, 3, 4])
def test_random_floors_are_trees_with_the_fork_asked_for(fork):
    for seed in range(50):
        floor = random_floor(np.random.default_rng(seed), 9, fork)
        links = (floor[1:] & floor[:-1]).sum() + (floor[:, 1:] & floor[:, :-1]).sum()
        assert links == floor.sum() - 1 == 25 + 24 - 1
        assert floor[::2, ::2].all()
        around = np.pad(floor, 1)
        ways = around[2:, 1:-1].astype(int) + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2]
        assert ways[floor].max() >= fork
    with pytest.raises(ValueError, match="odd size"):
        random_floor(np.random.default_rng(0), 6)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"entities": ["gem"]}, "nothing to choose"),
        ({"entities": ["gem", "gem"]}, "nothing to choose"),
        ({"entities": ["gem", "red_lock"]}, "red_lock is nothing to fetch"),
        ({"entities": ["gem", "pink_key"]}, "choose one of"),
        ({"distances": (0, 3)}, "must rise from at least 1"),
        ({"distances": (5, 3)}, "must rise"),
        ({"spread": -1}, "at least 0"),
        ({"size": 6}, "does not fit"),
        ({"size": 11}, "does not fit"),
        ({"distances": (50, 50)}, "no maze was found with blue_key, red_key 50 to 51 moves away"),
    ],
)
def test_impossible_choices_say_why(states, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        choice_maze(states[0], np.random.default_rng(0), **arguments)


def test_impossible_keys_and_locks_say_why(states):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="red lock without a red key"):
        keys_and_locks(states[0], rng, keys=["blue"], locks=["red"])
    with pytest.raises(ValueError, match="no colour"):
        keys_and_locks(states[0], rng, keys=["pink"], locks=[])
    with pytest.raises(ValueError, match=r"no maze of 5 cells .* 9 keys before 9 locks"):
        keys_and_locks(states[0], rng, keys=["red"] * 9, locks=["red"] * 9, size=5)


def test_open_ways_are_the_free_cells_on_the_four_sides() -> None:
    floor = np.random.default_rng(0).random((7, 9)) < 0.6
    around = np.pad(floor, 1)
    for y, x in np.ndindex(floor.shape):
        sides = int(around[y, x + 1]) + around[y + 2, x + 1] + around[y + 1, x] + around[y + 1, x + 2]
        assert open_ways(floor, (x, y)) == sides
