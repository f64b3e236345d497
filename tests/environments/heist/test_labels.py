import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, label_states
from environments.heist.layout import HeistPart


def test_labels_follow_an_episode():
    """Played by the oracle: what is picked up disappears and is held, path lengths fall, the target comes next."""
    env = VectorEnvironment(EnvironmentSettings("heist", "hard"), 32, seed=8)
    env.observe()
    previous = label_states(env.get_states())
    pickups = 0
    for _ in range(120):
        env.act(previous.oracle_action)
        _, _, first = env.observe()
        now = label_states(env.get_states())
        for slot in np.flatnonzero(~first):
            gained = now.held[slot] & ~previous.held[slot]
            assert not (previous.held[slot] & ~now.held[slot]).any()
            if gained.any():
                colour = int(np.flatnonzero(gained)[0])
                assert previous.target[slot] == colour
                assert (previous.cells[slot, colour] >= 0).all()
                assert (now.cells[slot, colour] == -1).all()
                pickups += 1
            assert now.total_length[slot] <= previous.total_length[slot]
            player = now.cells[slot, ENTITIES.index("player")]
            np.testing.assert_array_equal(player, now.position[slot].astype(int))
        previous = now
    assert pickups > 20
    env.close()


def test_natural_levels_ask_for_blue_green_red_gem():
    env = VectorEnvironment(EnvironmentSettings(), 256, seed=4)
    env.observe()
    labels = label_states(env.get_states())
    has_lock = labels.cells[:, 3, 0] >= 0
    assert (labels.target[has_lock] == 0).all()
    assert ((labels.cells[:, 6] >= 0).all(-1)).all()
    assert set(np.unique(labels.target)) <= {0, 6}
    assert (labels.world_dim == 9).all()
    env.close()


def test_the_heist_part_round_trips_and_other_games_are_refused():
    heist = VectorEnvironment(EnvironmentSettings("heist", "hard"), 4)
    tails = [State.from_bytes(data).tail for data in heist.get_states()]
    assert [HeistPart.from_tail(tail).to_tail() for tail in tails] == tails
    heist.close()
    for game, mode in (("maze", "easy"), ("fruitbot", "hard")):
        other = VectorEnvironment(EnvironmentSettings(game, mode), 1)
        with pytest.raises(ValueError, match="not one of heist"):
            label_states(other.get_states())
        other.close()
