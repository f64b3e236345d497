import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import label_states, read_layout, scatter_player


@pytest.fixture(scope="module")
def env():
    env = VectorEnvironment(EnvironmentSettings("heist", "hard", num_threads=0), 48, seed=6)
    env.observe()
    yield env
    env.close()


def reachable(state: State) -> set[int]:
    """Cells that the player can get to without opening a lock, by a naive relaxation over the whole grid."""
    layout = read_layout(state)
    maze, barred = layout.maze, {where for _, where in layout.maze.locks}
    found = {layout.player}
    while True:
        more = {
            other
            for cell in found
            for other in (cell - 1, cell + 1, cell - maze.side, cell + maze.side)
            if 0 <= other < maze.side**2
            and abs(other % maze.side - cell % maze.side) <= 1
            and not maze.walls[other]
            and other not in barred
        }
        if more <= found:
            return found
        found |= more


def test_scattered_levels_are_places_that_play_could_have_led_to(env):
    rng = np.random.default_rng(0)
    stages = []
    for data in env.get_states():
        state = State.from_bytes(data)
        before = read_layout(state)
        after_state = scatter_player(state, rng)
        after = read_layout(after_state)
        assert state.to_bytes() == data  # the original is not touched
        labels = label_states([after_state.to_bytes()])
        assert labels.total_length[0] > 0
        assert not after.maze.walls[after.player]
        assert after.player not in {where for _, where in (*after.maze.keys, *after.maze.locks)} | {after.maze.gem}
        # held keys are gone from the maze, all others lie where they lay; open locks are those of held keys
        assert set(after.maze.keys) == {key for key in before.maze.keys if not after.held >> key[0] & 1}
        opened = set(before.maze.locks) - set(after.maze.locks)
        assert set(after.maze.locks) <= set(before.maze.locks)
        assert all(after.held >> colour & 1 for colour, _ in opened)
        assert labels.target[0] in (*range(3), 6)
        # a held key was behind locks that are open now: whatever was reachable at first still is
        assert reachable(state) <= reachable(after_state) | {key for _, key in before.maze.keys}
        stages.append((after.held.bit_count(), after.player))
    assert {held for held, _ in stages} >= {0, 1, 2}
    assert len({cell for _, cell in stages}) > 20


def test_a_moving_player_comes_to_rest(env):
    state = State.from_bytes(env.get_states()[0])
    state.entities["vx"][0] = 0.3
    player = scatter_player(state, np.random.default_rng(0)).entities[0]
    assert player["vx"] == player["vy"] == 0


def test_scattered_levels_can_be_played_to_the_end(env):
    rng = np.random.default_rng(1)
    scattered = [scatter_player(State.from_bytes(data), rng).to_bytes() for data in env.get_states()]
    env.set_states(scattered)
    before = env.observe()[1].copy()
    assert [state.level_seed for state in map(State.from_bytes, env.get_states())] == [
        state.level_seed for state in map(State.from_bytes, scattered)
    ]
    env.set_states(scattered)
    assert np.array_equal(env.observe()[1], before)
    solved = np.zeros(48, dtype=bool)
    for _ in range(250):
        env.act(label_states(env.get_states()).oracle_action)
        reward, _, first = env.observe()
        solved |= first & (reward > 0)
    assert solved.all()
