import gc

import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment, held_out_levels
from environments.procgen import stepping_threads


@pytest.fixture
def env():
    env = VectorEnvironment(EnvironmentSettings(num_threads=0), 8, seed=1)
    yield env
    env.close()


def test_stepping_threads_are_the_cpus_divided_among_processes(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)))
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert stepping_threads(EnvironmentSettings(), 64) == 12
    assert stepping_threads(EnvironmentSettings(), 3) == 3
    assert stepping_threads(EnvironmentSettings(num_threads=5), 3) == 5
    monkeypatch.setenv("WORLD_SIZE", "2")  # all that Lightning says
    assert stepping_threads(EnvironmentSettings(), 64) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert stepping_threads(EnvironmentSettings(), 64) == 3
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert stepping_threads(EnvironmentSettings(), 64) == 12


def first_frame(seed: int, game: str = "heist", mode: str = "easy") -> np.ndarray:
    env = VectorEnvironment(EnvironmentSettings(game, mode, start_level=seed, num_levels=1), 1)
    frame = env.observe()[1][0].copy()
    env.close()
    return frame


@pytest.mark.parametrize(("game", "mode"), [("heist", "easy"), ("heist", "memory"), ("maze", "hard")])
def test_play_levels_shows_what_a_one_level_environment_shows(game, mode):
    env = VectorEnvironment(EnvironmentSettings(game, mode), 3, seed=9)
    seeds = [7, 50_001, 1_000_000]
    env.play_levels(seeds)
    _, frames, first = env.observe()
    assert first.all()
    for slot, seed in enumerate(seeds):
        np.testing.assert_array_equal(frames[slot], first_frame(seed, game, mode))
    assert [State.from_bytes(state).level_seed for state in env.get_states()] == seeds
    env.close()


def test_play_levels_leaves_the_other_slots_alone(env):
    rng = np.random.default_rng(0)
    for _ in range(20):
        env.observe()
        env.act(rng.integers(9, size=8))
    before = env.observe()[1].copy()
    states = env.get_states()
    env.play_levels([3, 4], slots=[2, 6])
    _, after, first = env.observe()
    untouched = [0, 1, 3, 4, 5, 7]
    np.testing.assert_array_equal(after[untouched], before[untouched])
    assert [env.get_states()[slot] for slot in untouched] == [states[slot] for slot in untouched]
    assert first[[2, 6]].all()


def test_states_can_be_put_back_and_play_on_identically(env):
    actions = np.random.default_rng(1).integers(9, size=(30, 8))
    env.observe()
    start = env.get_states()

    def play() -> list[np.ndarray]:
        seen = []
        for row in actions:
            env.act(row)
            seen.append(env.observe()[1].copy())
        return seen

    once = play()
    env.set_states(start)
    for a, b in zip(once, play(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_fix_the_levels():
    levels = []
    for seed in (4, 4, 5):
        env = VectorEnvironment(EnvironmentSettings(), 4, seed)
        levels.append([State.from_bytes(state).level_seed for state in env.get_states()])
        env.close()
    assert levels[0] == levels[1] != levels[2]
    assert min(min(row) for row in levels) >= 100_000


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"num_levels": 0}, "num_levels 0"),
        ({"start_level": 2**31 - 1}, "start_level"),
        ({"game": "heists"}, "choose one of .*heist"),
        ({"distribution_mode": "simple"}, "choose one of easy"),
        ({"distribution_mode": "exploration"}, "choose one of easy"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"game": "coinrun", "distribution_mode": "memory"}, "only for caveflyer.*heist"),
        ({"game": "heist", "distribution_mode": "extreme"}, "only for chaser"),
    ],
)
def test_wrong_settings_are_named(settings, reason):
    with pytest.raises(ValueError, match=reason):
        VectorEnvironment(EnvironmentSettings(**settings), 2)


def test_states_that_procgen_would_end_the_process_at_are_refused(env):
    states = env.get_states()
    maze = VectorEnvironment(EnvironmentSettings("maze", num_threads=0), 1)
    for wrong in (maze.get_states()[0], states[0][:-100], b""):
        with pytest.raises(ValueError, match="not all whole states of heist"):
            env.set_states([states[1], wrong], [0, 1])
    maze.close()
    assert env.get_states() == states


@pytest.mark.parametrize("seed", [-1, 2**31 - 1])
def test_seeds_of_no_level_are_refused(env, seed):
    with pytest.raises(ValueError, match=f"{seed} is no level seed"):
        env.play_levels([3, seed], [0, 1])


def test_held_out_levels_stay_in_their_split():
    assert held_out_levels("validation", 3, 10) == range(10, 13)
    assert held_out_levels("test", 50_000) == range(50_000, 100_000)
    with pytest.raises(ValueError, match="50001 test levels asked for: ask for 1 to 50000"):
        held_out_levels("test", 50_001)
    with pytest.raises(ValueError, match="0 validation levels asked for from offset 10: ask for 1 to 49990"):
        held_out_levels("validation", 0, 10)
    with pytest.raises(ValueError, match="offset 50000 is outside"):
        held_out_levels("validation", 1, 50_000)


def test_nothing_is_looked_up_in_the_library_once_an_environment_stands() -> None:
    """A garbage collection during such a look-up may end another environment, and wait for ever."""
    environment = VectorEnvironment(EnvironmentSettings(), 2)
    try:
        known = set(vars(environment._env._c_lib))
        assert {"get_state", "set_state", "libenv_act", "libenv_observe", "libenv_close"} <= known
        environment.play_levels([1, 2])
        environment.observe()
        environment.act(np.zeros(2, dtype=np.int32))
        environment.get_states()
        assert set(vars(environment._env._c_lib)) == known
        assert gc.isenabled()
    finally:
        environment.close()
