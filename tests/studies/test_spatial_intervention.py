from pathlib import Path

import numpy as np
import pytest

from environments import EnvironmentSettings
from environments.heist import ENTITIES, label_states
from studies import EntityTracking, SpatialIntervention
from studies.spatial_scenes import KINDS, find_scenes
from tests.figures import cut_off
from tests.planted import PlaceFollower
from tests.saved_subject import save_subject

EASY = EnvironmentSettings()
SMALL = {
    "strengths": (1.0,),
    "scan_scenes": 3,
    "test_scenes": 3,
    "reported": 2,
    "max_steps": 5,
    "starts": 1,
    "filmed": 1,
    "frame_levels": 2,
    "num_environments": 32,
}
FOLLOWED = 0  # the channel that the planted agent walks to the peak of


def planted(agent: str, **arguments) -> SpatialIntervention:
    study = SpatialIntervention(agent, **SMALL | {"kinds": ("room",), "max_steps": 40} | arguments)
    study.agent, study.tap = PlaceFollower().eval(), "map"
    return study


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)  # what is kept is kept there
    return save_subject(tmp_path)


def test_the_planted_agent_is_found_and_sent_anywhere(paths: dict[str, str]) -> None:
    """It walks to one channel's peak: tracking finds the channel, forcing it always works, and no control does."""
    tracking = EntityTracking(paths["agent"], taps=("conv1a",), rooms=1, steps=12, players=((4, 4),), shuffles=49)
    tracking.agent, tracking.taps = PlaceFollower().eval(), ("map",)
    rows = tracking.run().tables["units"].rows
    assert [row[8] for row in rows if row[1] == FOLLOWED and row[2] == "gem"] == ["yes"]
    report = planted(paths["agent"], scan_scenes=6, test_scenes=30, reported=1, starts=2).run()
    summary = report.summary
    assert summary["spatial/room/best_unit"] == FOLLOWED
    assert summary["spatial/room/best"] == 1
    for arm in ("none", "sham", "random_unit", "noise"):
        assert summary[f"spatial/room/best_{arm}_high"] < 0.6
        assert summary[f"spatial/room/best_minus_{arm}_low"] > 0.4
    assert summary["spatial/room/best_target_there"] == 1
    scan = {row[0]: row[3] for row in report.tables["room_scan"].rows}
    assert scan[FOLLOWED] == 1
    assert max(share for unit, share in scan.items() if unit != FOLLOWED) < 0.7
    assert set(report.figures) == {"room_scan", "room_arms", "room_ends"}
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert set(report.films) == {f"room_unit_{FOLLOWED}"}
    assert "Drawn to a place" in report.pages["spatial"]


def test_a_patch_of_the_followed_channel_sends_it_and_clearing_all_blinds_it(paths: dict[str, str]) -> None:
    known = {"scan_scenes": 3, "test_scenes": 8, "reported": 1, "starts": 0, "filmed": 0}
    report = planted(paths["agent"], forcing="patch", **known | {"starts": 1}).run()
    assert "room_ends" in report.figures, "also of the cell that the agent starts from"
    patched = report.summary
    assert patched["spatial/room/best_unit"] == FOLLOWED
    assert patched["spatial/room/best"] == 1
    assert patched["spatial/room/best_sham"] == patched["spatial/room/best_none"]
    cleared = planted(paths["agent"], forcing="clear", **known).run()
    assert "spatial/room/all" in cleared.summary
    assert "spatial/room/all_random_unit" not in cleared.summary, "there are no other units"


def test_each_unit_is_tested_at_the_strength_that_drew_the_agent_most(paths: dict[str, str]) -> None:
    """The planted agent looks at the peak's place, not at its height; but a peak of height 0 is none."""
    known = {"scan_scenes": 3, "test_scenes": 3, "reported": 1, "starts": 0, "filmed": 0}
    report = planted(paths["agent"], strengths=(0.0, 2.0), **known).run()
    strengths = {row[0]: row[1] for row in report.tables["room_scan"].rows}
    assert strengths[FOLLOWED] == report.summary["spatial/room/best_strength"] == 2
    assert report.summary["spatial/room/best"] == 1


def test_on_a_tap_that_falls_below_zero_heights_are_reckoned_from_the_median(paths: dict[str, str]) -> None:
    study = SpatialIntervention(paths["agent"], tap="conv4a.pre", **SMALL)
    trials = study._trials(study.agent)
    assert (trials.rest != 0).any()
    assert (trials.heights > trials.rest).all()
    np.testing.assert_allclose(trials.at(0.0).heights, trials.rest)
    np.testing.assert_allclose(trials.at(3.0).heights - trials.rest, 3 * (trials.heights - trials.rest), rtol=1e-5)
    rectified = SpatialIntervention(paths["agent"], tap="conv4a", **SMALL)
    trials = rectified._trials(rectified.agent)
    assert (trials.rest == 0).all()
    assert (trials.at(4.0).heights == 4 * trials.heights).all()


def test_latents_are_scanned_in_the_shipped_kinds(paths: dict[str, str]) -> None:
    study = SpatialIntervention(paths["agent"], tap=None, sae=paths["sae"], whole_cell=True, **SMALL)
    report = study.run()
    assert len(report.tables["choice_scan"].rows) == len(report.tables["natural_scan"].rows) == 64
    assert [row[0] for row in report.tables["choice_arms"].rows][-1].startswith("random weights")
    assert np.isfinite([report.summary[f"spatial/natural/{name}"] for name in ("best", "together", "best_none")]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_free_and_away_from_everything(kind: str) -> None:
    for scene in find_scenes(kind, "test", 5, settings=EASY, distances=(3, 8)):
        labels = label_states([scene.state.to_bytes()])
        cells = np.array([cell for cell in labels.cells[0].tolist() if cell[0] >= 0])
        assert np.abs(cells - scene.place).max(1).min() > 1
        assert np.abs(np.subtract(scene.place, scene.sham)).max() >= 3
        assert np.add(scene.place, scene.sham).tolist() == [8, 8]
        assert scene.state.level_seed >= 50_000
        moved = label_states([scene.target_there().to_bytes()])
        assert tuple(moved.cells[0][ENTITIES.index(scene.target)]) == scene.place


def test_refuses_what_cannot_be_forced(paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="fc1 is flat"):
        SpatialIntervention(paths["agent"], tap="fc1")
    with pytest.raises(ValueError, match=r"cache_dir .* cannot be written into"):
        SpatialIntervention(paths["agent"], cache_dir=paths["agent"])
    with pytest.raises(ValueError, match="no 'hall' scenes"):
        SpatialIntervention(paths["agent"], kinds=("hall",))
    with pytest.raises(ValueError, match="quantile 2"):
        SpatialIntervention(paths["agent"], quantile=2)
    with pytest.raises(ValueError, match="test_scenes is too small"):
        SpatialIntervention(paths["agent"], test_scenes=0)
    with pytest.raises(ValueError, match="only 0 of 2 natural scenes"):
        find_scenes("natural", "test", 2, settings=EASY, distances=(70, 80))
