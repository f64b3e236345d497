import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, find_entity, label_states, move_entity, read_layout


@pytest.fixture(scope="module")
def env():
    env = VectorEnvironment(EnvironmentSettings(num_threads=0), 32, seed=2)
    env.observe()
    yield env
    env.close()


def free_cells(state: State) -> list[tuple[int, int]]:
    maze = read_layout(state).maze
    taken = {cell for _, cell in (*maze.keys, *maze.locks)} | {maze.gem, read_layout(state).player}
    cells = [cell for cell in range(maze.side**2) if not maze.walls[cell] and cell not in taken]
    return [(cell % maze.side, cell // maze.side) for cell in cells]


def test_a_moved_key_changes_pixels_only_where_it_was_and_is(env):
    blue = ENTITIES.index("blue_key")
    moved = 0
    _, frames, _ = env.observe()
    for slot, data in enumerate(env.get_states()):
        state = State.from_bytes(data)
        labels = label_states([data])
        if labels.cells[0, blue, 0] < 0:
            continue
        was, to = tuple(labels.cells[0, blue]), free_cells(state)[-1]
        edited = move_entity(state, "blue_key", to)
        before = frames[slot].copy()
        env.set_states([edited.to_bytes()], [slot])
        after = env.observe()[1][slot].copy()
        changed = (before != after).any(-1)
        allowed = np.zeros((64, 64), dtype=bool)
        side = labels.world_dim[0]
        scale = 64 / side
        for x, y in (was, to):  # row 0 of a frame is the top, y grows upwards
            rows = slice(int((side - 1 - y) * scale) - 1, int((side - y) * scale) + 2)
            allowed[max(rows.start, 0) : rows.stop, max(int(x * scale) - 1, 0) : int((x + 1) * scale) + 2] = True
        assert changed.any()
        assert not (changed & ~allowed).any()  # the HUD is elsewhere, so it is untouched too
        assert tuple(label_states([env.get_states([slot])[0]]).cells[0, blue]) == to
        moved += 1
    assert moved >= 10


def test_impossible_moves_say_why(env):
    state = next(state for state in map(State.from_bytes, env.get_states()) if read_layout(state).maze.locks)
    maze = read_layout(state).maze
    wall = maze.walls.index(1)
    lock = maze.locks[0][1]
    with pytest.raises(ValueError, match="is a wall"):
        move_entity(state, "gem", (wall % maze.side, wall // maze.side))
    with pytest.raises(ValueError, match="already holds"):
        move_entity(state, "gem", (lock % maze.side, lock // maze.side))
    with pytest.raises(ValueError, match="outside"):
        move_entity(state, "gem", (-1, 0))
    with pytest.raises(ValueError, match="choose one of"):
        find_entity(state, "yellow_key")


def test_the_original_is_not_touched(env):
    data = env.get_states()[0]
    state = State.from_bytes(data)
    move_entity(state, "gem", free_cells(state)[0])
    assert state.to_bytes() == data
