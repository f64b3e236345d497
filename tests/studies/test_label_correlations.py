import numpy as np
import pytest
import torch

from environments import EnvironmentSettings
from environments.heist import label_states
from interpretability.episodes import first_states
from networks import CustomCNN, save_weights
from studies import LabelCorrelations
from studies.label_correlations import DRAWN, cramers_v, label_columns


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "agent.safetensors"
    save_weights(path, CustomCNN(), {})
    return str(path)


def test_cramers_v_of_known_tables():
    rng = np.random.default_rng(0)
    one = rng.integers(3, size=20_000)
    columns = {
        "one": one,
        "renamed": (one + 1) % 3,
        "coin": rng.integers(2, size=20_000),
        "constant": np.zeros(20_000, dtype=int),
        "often": np.where(rng.random(20_000) < 0.5, one, rng.integers(3, size=20_000)),
    }
    v = cramers_v(columns)
    assert v[0, 1] == pytest.approx(1)
    assert v[0, 2] < 0.03
    assert np.isnan(v[0, 3])
    assert v[0, 4] == pytest.approx(0.5, abs=0.02)  # of a copy that is right half of the time, else a guess
    np.testing.assert_array_equal(v, v.T)


def test_columns_of_natural_beginnings():
    columns = label_columns(label_states(first_states(range(60), EnvironmentSettings())))
    assert set(DRAWN) <= set(columns)
    assert set(columns["target"].tolist()) == {0, 3}
    assert (columns["keys_held"] == 0).all()
    first = columns["target"] == 0
    assert (columns["colours_left"][first] & 1 == 1).all()
    counted = [bin(mask).count("1") for mask in columns["colours_left"].tolist()]
    assert columns["keys_left"].tolist() == counted


def test_natural_play_is_confounded_and_deconfounded_states_are_not(agent):
    report = LabelCorrelations(agent, num_frames=600, device="cpu", precision="fp32").run()
    table = report.tables["correlations"]
    pairs = {(row[0], row[1]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert len(pairs) == 55
    assert sum(row["drawn"] == "yes" for row in pairs.values()) == 21
    assert report.summary["labels/deconfounded/max_v"] < 0.2
    assert report.summary["labels/natural/max_v"] > 0.5
    assert pairs["target", "keys_left"]["natural"] > 0.5
    assert pairs["target", "keys_left"]["deconfounded"] < 0.15
    shares = report.tables["frequencies"].rows
    for label in DRAWN:
        for column in (2, 3):
            assert sum(row[column] for row in shares if row[0] == label) == pytest.approx(1)
    assert report.summary["labels/frames"] == 600


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"num_frames": 1}, "num_frames 1"),
        ({"num_frames": 50_001}, "50001 validation levels"),
        ({"agent": "nowhere.safetensors"}, "nowhere"),
    ],
)
def test_mistakes_stop_before_any_work(agent, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        LabelCorrelations(**{"agent": agent} | arguments)
