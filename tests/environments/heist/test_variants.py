import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import (
    DIRECTIONS,
    ENTITIES,
    check_playable,
    copy_state,
    draw_maze,
    empty_room,
    find_entity,
    give_key,
    label_states,
    mirror,
    pickup_order,
    read_layout,
    remove_entity,
    reorder,
    rotate,
    swap_target,
    walk_square,
)
from environments.state import WALL
from interpretability.oracle_play import play_oracle_from

ORDER = ["blue_key", "green_key", "red_key", "gem"]


@pytest.fixture(scope="module")
def env():
    env = VectorEnvironment(EnvironmentSettings("heist", "hard", num_threads=0), 24, seed=2)
    env.observe()
    yield env
    env.close()


@pytest.fixture(scope="module")
def states(env) -> list[State]:
    """Natural levels, some steps in: the player moves and stands between cells."""
    rng = np.random.default_rng(0)
    for _ in range(6):
        env.act(rng.choice([1, 3, 5, 7], size=24))
        env.observe()
    return [State.from_bytes(data) for data in env.get_states()]


def frames_of(env: VectorEnvironment, made: list[State]) -> np.ndarray:
    """The game's frames of the states, which come back byte for byte."""
    data = [state.to_bytes() for state in made]
    slots = range(len(data))
    env.set_states(data, slots)
    frames = env.observe()[1][: len(data)].copy()
    assert env.get_states(slots) == data
    return frames


def solve(env: VectorEnvironment, made: list[State]) -> np.ndarray:
    return play_oracle_from([state.to_bytes() for state in made], settings=env.settings).solved


def test_turned_and_mirrored_worlds_have_turned_and_mirrored_labels(env, states):
    side = states[0].grid.shape[0]
    # DIRECTIONS are left, down, up, right; a quarter turn leads up to left, left to down, down to right, right to up.
    quarter, reflected = np.array([1, 3, 0, 2]), np.array([3, 1, 2, 0])
    before = label_states([state.to_bytes() for state in states])
    rested = [copy_state(state) for state in states]
    for state in rested:
        state.entities["vx"][0] = state.entities["vy"][0] = 0
    turned, flipped = [rotate(state) for state in states], [mirror(state) for state in states]
    for made, permuted in ((turned, quarter), (flipped, reflected)):
        after = label_states([state.to_bytes() for state in made])
        np.testing.assert_array_equal(after.total_length, before.total_length)
        np.testing.assert_array_equal(after.target, before.target)
        untied = ~before.direction_tied & (before.direction >= 0)
        np.testing.assert_array_equal(after.direction[untied], permuted[before.direction[untied]])
        frames_of(env, made)
    assert DIRECTIONS == ("left", "down", "up", "right")
    gem = before.cells[:, ENTITIES.index("gem")]
    np.testing.assert_array_equal(
        label_states([state.to_bytes() for state in turned]).cells[:, ENTITIES.index("gem")],
        np.stack([side - 1 - gem[:, 1], gem[:, 0]], 1),
    )
    for state, once, back in zip(rested, turned, flipped, strict=True):
        for again in (rotate(once, 3), mirror(back), rotate(state, 4)):
            np.testing.assert_array_equal(again.grid, state.grid)
            assert again.entities.dtype == state.entities.dtype
            np.testing.assert_allclose(again.entities["x"], state.entities["x"], atol=2e-6)
            np.testing.assert_allclose(again.entities["y"], state.entities["y"], atol=2e-6)


def test_walls_turn_in_the_picture(env, states):
    """The game's picture of a turned world shows wall where the turned picture did: read from the frame's corners."""
    for turns in range(4):
        made = rotate(states[0], turns)
        walls = states[0].grid == WALL
        picture = np.rot90(walls[::-1], turns)  # row 0 at the top, as in a frame
        np.testing.assert_array_equal((made.grid == WALL)[::-1], picture)


def test_pickups_come_in_the_order_asked_for(env, states):
    natural = [state for state in states if pickup_order(state) == ORDER]
    assert len(natural) >= 5
    made = []
    orders = (["red", "blue", "green"], ["green", "blue", "red"], ["red", "green", "blue"])
    for state, colours in zip(natural[:3], orders, strict=True):
        reordered = reorder(state, colours)
        assert pickup_order(reordered) == [*(f"{colour}_key" for colour in colours), "gem"]
        assert sorted(cell for _, cell in read_layout(reordered).maze.keys) == sorted(
            cell for _, cell in read_layout(state).maze.keys
        )
        made.append(check_playable(reordered))
    assert solve(env, made).all()
    with pytest.raises(ValueError, match="permutation"):
        reorder(natural[0], ["red", "blue"])


def test_pickup_order_takes_only_what_is_needed(states):
    assert pickup_order(draw_maze(states[0], ["rP.*"])) == ["gem"]
    assert pickup_order(draw_maze(states[0], ["Pr.*"])) == ["red_key", "gem"]
    assert pickup_order(draw_maze(states[0], ["P#*"])) == []
    assert pickup_order(draw_maze(states[0], ["rP.B*"], held=["blue"])) == ["gem"]
    assert pickup_order(draw_maze(states[0], ["gP.b", "##R#", "r#*#", "....", "G###"])) == []


def test_another_target_lies_in_the_same_place(env, states):
    made = []
    for state in states:
        order = pickup_order(state)
        if order != ORDER:
            continue
        before = label_states([state.to_bytes()])
        place = before.cells[0, before.target[0]]
        for name in ORDER:
            swapped = swap_target(state, name)
            after = label_states([swapped.to_bytes()])
            assert ENTITIES[after.target[0]] == name
            assert (after.cells[0, after.target[0]] == place).all()
            assert after.path_length == before.path_length
            np.testing.assert_array_equal(swapped.grid, state.grid)
            made.append(swapped)
    assert len(made) >= 20
    assert solve(env, made[:24]).all()


def test_impossible_targets_say_why(states):
    state = draw_maze(states[0], ["P.bB*"])
    with pytest.raises(ValueError, match="no place for a red key"):
        swap_target(state, "red_key")
    assert pickup_order(swap_target(state, "red_key", new_colours=True)) == ["red_key", "gem"]
    with pytest.raises(ValueError, match="nothing to fetch"):
        swap_target(state, "blue_lock")
    with pytest.raises(ValueError, match="green key is held"):
        swap_target(give_key(state, "green", new_colours=True), "green_key")
    with pytest.raises(ValueError, match="no solution"):
        swap_target(remove_entity(state, "gem"), "blue_key")


@pytest.mark.parametrize(("name", "steps"), [("gem", 16), ("blue_key", 7), ("red_lock", 1)])
def test_a_walk_moves_one_entity_and_nothing_else(env, states, name, steps):
    things = {"gem": (0, 0), "blue_key": (12, 12), "red_key": (0, 12)} | {"red_lock": (12, 0)}
    room = empty_room(states[0], things)
    walk = walk_square(room, name, (4, 4), side=4, steps=steps)
    frames = frames_of(env, [room, *walk])
    row = find_entity(room, name)
    places = np.array([[state.entities[axis][row] for axis in ("x", "y")] for state in walk])
    assert len(walk) == steps
    np.testing.assert_array_equal(places[0], [4.5, 8.5])
    middle = places - 6.5
    assert np.allclose(np.abs(middle).max(1), 2), "on the rim of the square"
    if steps == 16:  # a cell a step, clockwise: the angle falls all the time
        angles = np.unwrap(np.arctan2(middle[:, 1], middle[:, 0]))
        assert (np.diff(angles) < 0).all()
        assert angles[0] - angles[-1] < 2 * np.pi
        np.testing.assert_allclose(np.abs(np.diff(places, axis=0)).sum(1), 1)
    for state, frame in zip(walk, frames[1:], strict=True):
        others = np.delete(state.entities, row)
        assert others.tobytes() == np.delete(room.entities, row).tobytes()
        changed = (frame != frames[0]).any(-1)
        x, y = state.entities["x"][row], state.entities["y"][row]
        allowed = np.zeros_like(changed)
        for cx, cy in ((x, y), things[name] if False else np.add(things[name], 0.5)):
            top, left = (13 - cy - 0.5) * 64 / 13, (cx - 0.5) * 64 / 13
            allowed[max(int(top) - 1, 0) : int(top + 64 / 13) + 2, max(int(left) - 1, 0) : int(left + 64 / 13) + 2] = (
                True
            )
        assert changed.any()
        assert not (changed & ~allowed).any()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": "player"}, "stays fixed"),
        ({"name": "red_key"}, "has no red_key"),
        ({"side": 0}, "no walk"),
        ({"steps": 0}, "no walk"),
        ({"corner": (3, 3), "side": 11}, "through a wall"),
        ({"corner": (6, 6)}, "over the player"),
        ({"corner": (0, 0)}, "through a wall"),
    ],
)
def test_impossible_walks_say_why(states, arguments, reason):
    with pytest.raises(ValueError, match="outside the world, at"):
        walk_square(empty_room(states[0]), "gem", (8, 8), side=6, steps=4)
    room = empty_room(states[0], {"gem": (3, 3), "blue_key": (9, 9)}, size=11)
    with pytest.raises(ValueError, match=reason):
        walk_square(room, **{"name": "gem", "corner": (3, 3), "side": 4, "steps": 4} | arguments)
