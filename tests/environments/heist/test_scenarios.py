from collections.abc import Callable, Iterator

import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import (
    COLOURS,
    ENTITIES,
    HeistPart,
    add_entity,
    check_playable,
    close_walls,
    copy_state,
    find_entity,
    give_key,
    label_states,
    mirror,
    move_entity,
    occupied_cells,
    open_walls,
    place_player,
    read_layout,
    recolour,
    recolour_entity,
    remove_entity,
    rotate,
    swap_entities,
    t_maze,
    take_key,
)
from environments.state import WALL

Shown = Callable[[State], np.ndarray]


@pytest.fixture(scope="module")
def env() -> Iterator[VectorEnvironment]:
    env = VectorEnvironment(EnvironmentSettings(num_threads=0), 32, seed=2)
    env.observe()
    yield env
    env.close()


@pytest.fixture(scope="module")
def states(env: VectorEnvironment) -> list[State]:
    return [State.from_bytes(data) for data in env.get_states()]


@pytest.fixture(scope="module")
def three_keys(states: list[State]) -> State:
    """A natural level with three keys and three locks."""
    return next(state for state in states if len(read_layout(state).maze.locks) == 3)


@pytest.fixture
def shown(env: VectorEnvironment) -> Shown:
    """The game's frame of a state, which comes back from the game byte for byte."""

    def show(state: State) -> np.ndarray:
        data = state.to_bytes()
        env.set_states([data], [0])
        frame = env.observe()[1][0].copy()
        assert env.get_states([0]) == [data]
        return frame

    return show


def free_cells(state: State) -> list[tuple[int, int]]:
    maze = read_layout(state).maze
    taken = {cell for _, cell in (*maze.keys, *maze.locks)} | {maze.gem, read_layout(state).player}
    cells = [cell for cell in range(maze.side**2) if not maze.walls[cell] and cell not in taken]
    return [(cell % maze.side, cell // maze.side) for cell in cells]


def cell_of(state: State, name: str) -> tuple[int, int]:
    row = find_entity(state, name)
    return int(state.entities["x"][row]), int(state.entities["y"][row])


def assert_changed_only_at(before: np.ndarray, after: np.ndarray, cells: list[tuple[int, int]], side: int = 9) -> None:
    """Pixels differ, and none that is further than rounding from the cells; row 0 of a frame is its top."""
    changed = (before != after).any(-1)
    allowed = np.zeros((64, 64), dtype=bool)
    scale = 64 / side
    for x, y in cells:
        rows = slice(max(int((side - 1 - y) * scale) - 1, 0), int((side - y) * scale) + 2)
        allowed[rows, max(int(x * scale) - 1, 0) : int((x + 1) * scale) + 2] = True
    assert changed.any()
    assert not (changed & ~allowed).any()


def test_a_moved_entity_changes_pixels_only_where_it_was_and_is(states, shown):
    moved = {"blue_key": 0, "blue_lock": 0, "gem": 0, "player": 0}
    for state in states:
        for name in moved:
            if any(name in names for names in occupied_cells(state).values()):
                was, to = cell_of(state, name), free_cells(state)[-1]
                edited = move_entity(state, name, to)
                assert_changed_only_at(shown(state), shown(edited), [was, to])  # the HUD is elsewhere, so untouched
                assert tuple(label_states([edited.to_bytes()]).cells[0, ENTITIES.index(name)]) == to
                moved[name] += 1
    assert min(moved.values()) >= 5


def test_removed_added_and_swapped_entities_change_pixels_only_there(three_keys, shown):
    before, key, gem = shown(three_keys), cell_of(three_keys, "green_key"), cell_of(three_keys, "gem")
    removed = remove_entity(three_keys, "green_key")
    assert_changed_only_at(before, shown(removed), [key])
    to = free_cells(three_keys)[0]
    assert_changed_only_at(before, shown(add_entity(removed, "green_key", to)), [key, to])
    swapped = swap_entities(three_keys, "green_key", "gem")
    assert_changed_only_at(before, shown(swapped), [key, gem])
    assert (cell_of(swapped, "gem"), cell_of(swapped, "green_key")) == (key, gem)
    twice = swap_entities(swapped, "gem", "green_key")
    assert twice.to_bytes() == three_keys.to_bytes()
    lock = swap_entities(three_keys, "green_key", "blue_lock").entities[find_entity(three_keys, "blue_lock")]
    assert (lock["x"] % 1, lock["y"] % 1) == (0.5, 0.5)


@pytest.mark.parametrize("mode", ["easy", "hard", "memory"])
def test_added_entities_are_those_that_the_game_makes(mode):
    """Every natural entity, taken out and added again, has the same bytes but for its scattered place."""
    env = VectorEnvironment(EnvironmentSettings("heist", mode, num_threads=0), 32, seed=3)
    seen = set()
    for data in env.get_states():
        state = State.from_bytes(data)
        for cell, (name,) in occupied_cells(state).items():
            if name == "player":
                continue
            original = state.entities[find_entity(state, name)].copy()
            original["x"], original["y"] = cell[0] + 0.5, cell[1] + 0.5
            added = add_entity(remove_entity(state, name), name, cell)
            assert added.entities[-1].tobytes() == original.tobytes()
            seen.add(name)
    env.close()
    assert seen == set(ENTITIES) - {"player"}


def test_a_longer_key_ring_is_the_one_of_levels_with_more_keys(states, three_keys):
    short = next(state for state in states if HeistPart.from_tail(state.tail).num_keys == 0)
    to = free_cells(short)[0]
    with pytest.raises(ValueError, match=r"no place for a red key \(no keys\).*new_colours=True"):
        add_entity(short, "red_key", to)
    two = next(state for state in states if HeistPart.from_tail(state.tail).num_keys == 2)
    with pytest.raises(ValueError, match=r"no place for a red key \(only blue and green\)"):
        recolour(two, {"blue": "red"})
    with pytest.raises(ValueError, match="no place for a red key"):
        give_key(two, "red")
    longer = add_entity(short, "red_key", to, new_colours=True)
    assert HeistPart.from_tail(longer.tail) == HeistPart(3, 9, [False] * 3)
    icons = [state.entities[state.entities["type"] == 11].tobytes() for state in (longer, three_keys)]
    assert icons[0] == icons[1]


def test_held_keys_show_on_the_ring(three_keys, shown):
    before, key = shown(three_keys), cell_of(three_keys, "blue_key")
    held = give_key(three_keys, "blue")
    ring = [(8, 8), (7, 8)]  # the ring is at the frame's upper right
    assert_changed_only_at(before, shown(held), [key, *ring])
    assert (shown(held) != shown(remove_entity(three_keys, "blue_key"))).any(-1)[:6, 50:].any()
    assert read_layout(held).held == 1
    assert np.array_equal(shown(take_key(held, "blue")), shown(remove_entity(three_keys, "blue_key")))
    with pytest.raises(ValueError, match="held already"):
        give_key(held, "blue")
    with pytest.raises(ValueError, match="not held"):
        take_key(three_keys, "blue")


def test_a_held_key_opens_its_lock_in_the_game(three_keys, env):
    """With all keys in hand the locks are no hindrance: the game lets the player through."""
    state = three_keys
    for colour in COLOURS:
        state = give_key(state, colour)
    env.set_states([state.to_bytes()], [1])
    env.observe()
    for _ in range(150):
        actions = np.full(32, 4)
        actions[1] = label_states(env.get_states([1])).oracle_action[0]
        env.act(actions)
        reward, _, first = env.observe()
        if first[1]:
            break
    assert reward[1] == 10
    env.set_states([three_keys.to_bytes()], [1])


def test_recolouring_permutes_keys_locks_and_hands(three_keys, shown):
    before = read_layout(three_keys).maze
    held = give_key(three_keys, "red")
    turned = recolour(held, {"blue": "green", "green": "red", "red": "blue"})
    shown(turned)
    after = read_layout(turned)
    assert after.held == 1 << COLOURS.index("blue")
    assert set(after.maze.locks) == {((colour + 1) % 3, cell) for colour, cell in before.locks}
    assert set(after.maze.keys) == {((colour + 1) % 3, cell) for colour, cell in before.keys if colour != 2}
    with pytest.raises(ValueError, match="one colour of two"):
        recolour(three_keys, {"blue": "red"})
    one = recolour_entity(three_keys, "blue_lock", "red")
    assert read_layout(one).maze.keys == before.keys
    assert sorted(colour for colour, _ in read_layout(one).maze.locks) == [1, 2, 2]
    with pytest.raises(ValueError, match="gem has no colour"):
        recolour_entity(three_keys, "gem", "red")
    with pytest.raises(ValueError, match="'yellow' is no colour"):
        recolour(three_keys, {"blue": "yellow"})


def test_walls_open_and_close(three_keys, shown):
    before = shown(three_keys)
    y, x = np.argwhere(three_keys.grid == WALL)[0].tolist()
    opened = open_walls(three_keys, [(x, y)])
    assert_changed_only_at(before, shown(opened), [(x, y)])
    assert close_walls(opened, [(x, y)]).to_bytes() == three_keys.to_bytes()
    with pytest.raises(ValueError, match="holds gem"):
        close_walls(three_keys, [cell_of(three_keys, "gem")])
    with pytest.raises(ValueError, match="outside"):
        open_walls(three_keys, [(9, 0)])
    aside = copy_state(three_keys)
    aside.entities["x"][0] += 0.2
    px, py = cell_of(aside, "player")
    beside = (px + 1, py)
    if beside in occupied_cells(aside) or px == 8:
        beside = (px - 1, py)
        aside.entities["x"][0] -= 0.4
    with pytest.raises(ValueError, match="reaches into"):
        close_walls(aside, [beside])


def test_a_placed_player_stands_still(three_keys, shown):
    running = copy_state(three_keys)
    running.entities["vx"][0] = 0.3
    to = free_cells(three_keys)[0]
    placed = place_player(running, to)
    shown(placed)
    assert placed.entities["vx"][0] == 0
    assert cell_of(placed, "player") == to
    with pytest.raises(ValueError, match="already holds gem"):
        place_player(three_keys, cell_of(three_keys, "gem"))


def test_the_view_of_memory_mode_follows_the_player():
    env = VectorEnvironment(EnvironmentSettings("heist", "memory", num_threads=0), 6, seed=3)
    natural = [State.from_bytes(data) for data in env.get_states()]
    made = [place_player(state, free_cells(state)[0]).to_bytes() for state in natural[:2]]
    made += [rotate(natural[2]).to_bytes(), mirror(natural[3]).to_bytes()]
    made += [t_maze(state, "gem", "red_key", stem=7, arm=9).to_bytes() for state in natural[4:]]
    env.set_states(made)
    env.observe()
    assert env.get_states() == made
    env.close()


def test_impossible_edits_say_why(three_keys):
    wall = tuple(np.argwhere(three_keys.grid.T == WALL)[0].tolist())
    lock, free = cell_of(three_keys, "blue_lock"), free_cells(three_keys)[0]
    for cell, reason in ((wall, "is a wall"), (lock, "already holds blue_lock"), ((-1, 0), "outside")):
        with pytest.raises(ValueError, match=reason):
            move_entity(three_keys, "gem", cell)
        with pytest.raises(ValueError, match=reason):
            add_entity(three_keys, "red_key", cell)
    with pytest.raises(ValueError, match="choose one of"):
        find_entity(three_keys, "yellow_key")
    with pytest.raises(ValueError, match="has no blue_key"):
        find_entity(remove_entity(three_keys, "blue_key"), "blue_key")
    with pytest.raises(ValueError, match="a gem already"):
        add_entity(three_keys, "gem", free)
    with pytest.raises(ValueError, match="exactly one player"):
        add_entity(three_keys, "player", free)
    with pytest.raises(ValueError, match="without its player"):
        remove_entity(three_keys, "player")


def test_unplayable_scenarios_say_why(three_keys):
    assert check_playable(three_keys) is three_keys
    with pytest.raises(ValueError, match=r"blue_lock at .* has no blue key"):
        check_playable(remove_entity(three_keys, "blue_key"))
    with pytest.raises(ValueError, match="no gem"):
        check_playable(remove_entity(three_keys, "gem"))
    sunk = copy_state(three_keys)
    sunk.grid[cell_of(sunk, "red_key")[::-1]] = WALL
    with pytest.raises(ValueError, match="red_key lies inside a wall"):
        check_playable(sunk)
    doubled = copy_state(three_keys)
    gem = find_entity(doubled, "gem")
    doubled.entities["x"][gem], doubled.entities["y"][gem] = np.add(cell_of(doubled, "red_key"), 0.5)
    with pytest.raises(ValueError, match="share cell"):
        check_playable(doubled)
    short = copy_state(three_keys)
    short.tail = HeistPart(1, 9, [False]).to_tail()
    with pytest.raises(ValueError, match="ring holds 1 colours"):
        check_playable(short)
    with pytest.raises(ValueError, match="no path leads to the gem"):
        check_playable(swap_entities(three_keys, "blue_key", "red_key"))


def test_natural_levels_are_playable(states):
    for state in states:
        check_playable(state)


def test_the_original_is_not_touched(three_keys):
    data = three_keys.to_bytes()
    free = free_cells(three_keys)[0]
    move_entity(three_keys, "gem", free)
    move_entity(three_keys, "player", free)
    add_entity(three_keys, "red_key", free)
    remove_entity(three_keys, "red_key")
    recolour(three_keys, {"blue": "red", "red": "blue"})
    recolour_entity(three_keys, "red_key", "blue")
    take_key(give_key(three_keys, "blue"), "blue")
    open_walls(three_keys, [(0, 1), (1, 0), (1, 1)])
    swap_entities(three_keys, "gem", "player")
    assert three_keys.to_bytes() == data
