"""Deconfounded states against a chi-squared test of independence, and their play in the game."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, check_playable, deconfounded_states, label_states, pickup_order
from interpretability.oracle_play import play_oracle_from

COUNT = 1_500


@pytest.fixture(scope="module")
def base() -> list[bytes]:
    env = VectorEnvironment(EnvironmentSettings(num_threads=0), 32, seed=5)
    env.observe()
    states = env.get_states()
    env.close()
    return states


@pytest.fixture(scope="module")
def made(base) -> list[bytes]:
    many = [state for seed in range(-(-COUNT // len(base))) for state in deconfounded_states(base, seed=seed)]
    return many[:COUNT]


def test_drawn_labels_are_uniform_and_independent(made):
    labels = label_states(made)
    target = labels.cells[np.arange(COUNT), labels.target]
    drawn = {
        "target": labels.target,
        "x": target[:, 0],
        "y": target[:, 1],
        "direction": labels.direction,
        "length": labels.path_length,
        "left": (labels.cells[:, :3, 0] >= 0).sum(1),
        "held": labels.held.sum(1),
    }
    values = [4, 9, 9, 4, 10, 2, 2]
    assert [len(np.unique(column)) for column in drawn.values()] == values
    # 28 tests at a level of 1e-4 each: fixed seeds, and nothing here is close
    for name, column in drawn.items():
        assert stats.chisquare(np.unique(column, return_counts=True)[1]).pvalue > 1e-4, name
    for one, other in combinations(drawn, 2):
        table = stats.contingency.crosstab(drawn[one], drawn[other]).count
        assert stats.chi2_contingency(table).pvalue > 1e-4, (one, other)
    assert not labels.direction_tied.any()


def test_colours_come_in_every_order(made):
    orders = Counter(tuple(pickup_order(State.from_bytes(data))) for data in made)
    two = {order: count for order, count in orders.items() if len(order) == 3}
    assert set(two) == {(a, b, "gem") for a in ENTITIES[:3] for b in ENTITIES[:3] if a != b}
    assert stats.chisquare(list(two.values())).pvalue > 1e-4
    one = [orders[name, "gem"] for name in ENTITIES[:3]]
    assert stats.chisquare(one).pvalue > 1e-4
    labels = label_states(made)
    for colour in range(3):  # given that it is not the target, whether a colour is left or held does not tell which is
        others = labels.target != colour
        for seen in (labels.cells[:, colour, 0] >= 0, labels.held[:, colour]):
            keys = others & (labels.target < 3)
            table = stats.contingency.crosstab(labels.target[keys], seen[keys]).count
            assert stats.chi2_contingency(table).pvalue > 1e-4


def test_states_depend_on_seed_and_level_alone(base, made):
    assert deconfounded_states(base[3:5], seed=0) == made[3:5]
    assert deconfounded_states(base[3:5], seed=1) != made[3:5]
    assert [State.from_bytes(data).level_seed for data in made[: len(base)]] == [
        State.from_bytes(data).level_seed for data in base
    ]


@pytest.mark.parametrize("mode", ["easy", "hard", "memory"])
def test_deconfounded_states_round_trip_and_are_solved_in_the_game(mode):
    env = VectorEnvironment(EnvironmentSettings("heist", mode, num_threads=0), 32, seed=6)
    data = deconfounded_states(env.get_states())
    for state in data:
        check_playable(State.from_bytes(state))
    env.set_states(data)
    env.observe()
    assert env.get_states() == data
    env.close()
    assert play_oracle_from(data, settings=env.settings).solved.all()
