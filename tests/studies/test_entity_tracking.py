from pathlib import Path

import numpy as np
import pytest
import torch

from environments import State
from interpretability.episodes import first_states
from networks import CustomCNN, save_weights
from studies import EntityTracking, entity_tracking
from tests.figures import cut_off
from tests.planted import PeakFollower
from tests.saved_subject import save_subject

SMALL = {"rooms": 1, "steps": 12, "players": ((4, 4), (0, 4)), "shuffles": 49}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def test_the_planted_agents_channels_follow_what_has_their_colour(agent: str) -> None:
    """Its channels are means of colours: they see every entity that is not the floor's colour, where it is."""
    study = EntityTracking(agent, taps=("conv1a",), **SMALL)
    study.agent, study.taps = PeakFollower().eval(), ("map",)
    report = study.run()
    rows = [row for row in report.tables["units"].rows if row[0] == "map"]
    assert len(rows) == 7 * 3
    red = {row[2]: row for row in rows if row[1] == 0}
    for name in ("red_key", "gem"):
        assert red[name][3] > 0.9
        assert red[name][5] > 0.9
        assert red[name][8] == "yes"
    assert report.summary["tracking/map/red_key"] > 0
    assert report.summary["tracking/map/several"] > 0
    assert report.summary["tracking/map/stable"] > 0.5
    share, low, high = (report.summary[f"tracking/map/red_key{end}"] for end in ("", "_low", "_high"))
    assert 0 < low < share <= high
    assert f"{100 * share:.0f} ({100 * low:.0f} to {100 * high:.0f})" in report.tables["shares"].rows[0]


def test_scores_every_unit_beside_an_agent_with_random_weights(agent: str) -> None:
    report = EntityTracking(agent, taps=("conv2b", "conv4a"), **SMALL).run()
    assert len(report.tables["units"].rows) == 2 * 32 * 7
    assert np.isfinite([report.summary[f"tracking/conv4a/random_agent_{name}"] for name in ("gem", "several")]).all()
    assert set(report.figures) == {"conv2b", "conv4a"}
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert "random weights" in report.pages["tracking"]


def test_walks_in_the_larger_world_of_hard_mode(agent: str) -> None:
    study = EntityTracking(agent, taps=("conv4a",), distribution_mode="hard", **SMALL | {"shuffles": 4})
    base = State.from_bytes(first_states([0], study.settings)[0])
    places = entity_tracking._places(entity_tracking._walk(base, "gem", (4, 4), 12), "gem")
    assert (places.min(), places.max()) == (1.5, 11.5), "a cell off the edge of 13"
    assert len(study.run().tables["units"].rows) == 32 * 7


def test_refuses_what_cannot_be_walked_or_read(agent: str) -> None:
    with pytest.raises(ValueError, match="fc1 is flat"):
        EntityTracking(agent, taps=("fc1",), **SMALL)
    with pytest.raises(ValueError, match="taps is empty"):
        EntityTracking(agent, taps=(), **SMALL)
    with pytest.raises(ValueError, match="rooms 0"):
        EntityTracking(agent, **SMALL | {"rooms": 0})
    with pytest.raises(ValueError, match="walk leads over the player"):
        EntityTracking(agent, **SMALL | {"players": ((1, 4),)})
    with pytest.raises(ValueError, match="walk leads over the player"):
        EntityTracking(agent, **SMALL | {"players": ((4, 4), (1, 4))})
    with pytest.raises(ValueError, match=r"outside, at \(20, 4\)"):
        EntityTracking(agent, **SMALL | {"players": ((4, 4), (20, 4))})


def test_refuses_an_autoencoder_of_a_flat_tap(tmp_path: Path) -> None:
    subject = save_subject(tmp_path, tap="fc1")
    with pytest.raises(ValueError, match="fc1 is flat"):
        EntityTracking(subject["agent"], ("conv4a",), subject["sae"], **SMALL)
