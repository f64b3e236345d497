import dataclasses

import numpy as np
import pytest

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import POSITION_TARGETS, TARGETS, ClassTarget, choose_targets, label_states, positions


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    """Of oracle play, with what recorded play and the agent would add."""
    env = VectorEnvironment(EnvironmentSettings(), 64, seed=2)
    env.observe()
    parts = []
    for _ in range(30):
        found = label_states(env.get_states())
        parts.append(dataclasses.asdict(found))
        env.act(found.oracle_action)
        env.observe()
    env.close()
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    count = len(columns["level"])
    rng = np.random.default_rng(0)
    return columns | {
        "pursued": rng.integers(-1, 7, count),
        "steps_to_pickup": rng.integers(-1, 30, count),
        "action": rng.integers(15, size=count),
    }


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_target_answers_within_its_classes(labels: dict[str, np.ndarray], target) -> None:
    values = target.read(labels)
    assert len(values) == len(labels["level"])
    assert target.oracle
    if isinstance(target, ClassTarget):
        assert values.dtype == np.int64
        assert values.min() >= -1
        assert values.max() < len(target.classes)
        assert len(np.unique(values[values >= 0])) >= 2
    else:
        assert values.shape[1] == len(target.columns)
        known = np.isfinite(values)
        assert known.any()
        assert (known.all(1) == known.any(1)).all()


def test_targets_by_hand(labels: dict[str, np.ndarray]) -> None:
    read = {target.name: target.read(labels) for target in TARGETS}
    np.testing.assert_array_equal(np.array([0, 1, 2, 6])[read["target"]], labels["target"])
    tied = labels["direction_tied"]
    assert (read["next_direction"][tied] == -1).all()
    np.testing.assert_array_equal(read["next_direction"][~tied], labels["direction"][~tied])
    assert (read["after_target"][labels["target"] == 6] == 4).all()
    np.testing.assert_array_equal(read["held_green_key"], labels["held"][:, 1])
    steps = labels["target_cell"] + 0.5 - labels["position"]
    np.testing.assert_allclose(read["manhattan_distance"][:, 0], np.abs(steps).sum(1))
    np.testing.assert_allclose(read["euclidean_distance"][:, 0], np.sqrt((steps**2).sum(1)))
    absent = labels["cells"][:, 1, 0] < 0
    assert np.isnan(read["green_key_cell"][absent]).all()
    assert (read["action"][labels["action"] >= 9] == 4).all()


def test_positions_are_where_the_frame_shows_them(labels: dict[str, np.ndarray]) -> None:
    """A map of as many positions as the world has cells: row 0 is the top, so y runs the other way."""
    where = positions(labels, 9, 9)
    assert where.shape == (len(labels["level"]), len(POSITION_TARGETS))
    x, y = labels["cells"][:, :7, 0], labels["cells"][:, :7, 1]
    np.testing.assert_array_equal(where[:, :7], np.where(x >= 0, (8 - y) * 9 + x, -1))
    np.testing.assert_array_equal(where[:, 8], where[np.arange(len(where)), labels["target"]])
    coarse = positions(labels, 3, 3)
    np.testing.assert_array_equal(coarse[:, 6], where[:, 6] // 9 // 3 * 3 + where[:, 6] % 9 // 3)


def test_a_target_that_is_none_is_named() -> None:
    assert choose_targets(None) == TARGETS
    assert [target.name for target in choose_targets(["action", "target"])] == ["action", "target"]
    with pytest.raises(ValueError, match="no target 'colour': choose among target, pursued"):
        choose_targets(["colour"])
