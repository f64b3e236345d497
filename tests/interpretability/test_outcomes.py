import numpy as np
import pytest
from scipy.stats import trim_mean

from interpretability.episodes import Episodes
from interpretability.outcomes import optimality, outcome_intervals


def episodes(solved, lengths) -> Episodes:
    solved = np.array(solved, dtype=bool)
    count = len(solved)
    return Episodes(
        np.arange(count), 10 * solved.astype(np.float32), np.array(lengths), solved, np.zeros(count, dtype=bool)
    )


ORACLE = episodes([1, 1, 1, 0], [10, 20, 30, 40])


def test_optimality_is_over_levels_that_both_solve():
    ratios = optimality(episodes([1, 1, 0, 1], [20, 20, 1000, 50]), ORACLE)
    assert ratios[:2].tolist() == [0.5, 1.0]
    assert np.isnan(ratios[2:]).all()


def test_one_agent_is_measured_over_levels():
    run = episodes([1, 1, 0, 1], [20, 20, 1000, 50])
    found = outcome_intervals([run], ORACLE)
    assert found["optimality"].value == 0.75
    assert 0.5 <= found["optimality"].low <= 0.75 <= found["optimality"].high <= 1
    assert {name: found[name] for name in ("return", "solved", "episode_length")} == run.intervals()
    assert "return_iqm" not in found
    assert "optimality" not in outcome_intervals([run])
    assert np.isnan(outcome_intervals([episodes([0] * 4, [9] * 4)], ORACLE)["optimality"].value)


def test_several_agents_are_measured_over_agents_and_levels():
    generator = np.random.default_rng(0)
    runs = [episodes(generator.random(40) < skill, np.full(40, 30)) for skill in (0.1, 0.5, 0.6, 0.7, 0.9)]
    found = outcome_intervals(runs, episodes([1] * 40, [15] * 40), np.arange(40) % 4)
    means = [run.returns.mean() for run in runs]
    assert found["return"].value == pytest.approx(np.mean(means))
    assert (
        found["return_iqm"].value == pytest.approx(trim_mean(means, 0.25)) == pytest.approx(np.mean(sorted(means)[1:4]))
    )
    assert found["solved"].value == pytest.approx(np.mean(means) / 10)
    assert found["optimality"] == pytest.approx((0.5, 0.5, 0.5))
    for value, low, high in (found["return"], found["return_iqm"]):
        assert 0 < low < value < high < 10
