import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment


def played_states(game: str, mode: str, count: int, seed: int = 5) -> list[bytes]:
    """Mid-episode states under random play."""
    env = VectorEnvironment(EnvironmentSettings(game, mode), 64, seed)
    rng = np.random.default_rng(seed)
    states: list[bytes] = []
    while len(states) < count:
        for _ in range(6):
            env.observe()
            env.act(rng.integers(0, 15, 64))
        env.observe()
        states += env.get_states()
    env.close()
    return states[:count]


@pytest.mark.parametrize(
    ("game", "mode", "count"),
    [
        ("heist", "easy", 3400),
        ("heist", "hard", 3400),
        ("heist", "memory", 3200),
        ("maze", "easy", 500),
        ("coinrun", "easy", 500),
    ],
)
def test_states_round_trip_byte_for_byte(game, mode, count):
    states = played_states(game, mode, count)
    assert len(set(states)) == count
    for data in states:
        state = State.from_bytes(data)
        assert state.to_bytes() == data
        assert state.fields["name"] == game.encode()


def test_fields_are_read_where_they_are():
    env = VectorEnvironment(EnvironmentSettings("heist", "hard", start_level=123_456, num_levels=1), 1)
    env.observe()
    for step in range(5):
        env.act(np.array([7]))
        env.observe()
        state = State.from_bytes(env.get_states()[0])
        assert state.fields["cur_time"] == step + 1
        assert state.fields["action"] == 7
    assert state.level_seed == 123_456
    assert (state.fields["level_seed_low"], state.fields["level_seed_high"]) == (123_456, 123_457)
    assert state.grid.shape == (13, 13)
    assert set(np.unique(state.grid)) <= {51, 100}
    assert state.entities["type"][0] == 0
    env.close()


@pytest.mark.parametrize("cut", [0, 3, 40, 9000, -5])
def test_a_truncated_state_is_refused(cut):
    data = played_states("heist", "easy", 1)[0]
    with pytest.raises(ValueError, match="state"):
        State.from_bytes(data[:cut])
