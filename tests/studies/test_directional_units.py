from pathlib import Path

import numpy as np
import pytest

from environments import State
from environments.heist import DIRECTIONS, corner_scenes
from interpretability.episodes import first_states
from studies import DirectionalUnits
from tests.figures import cut_off
from tests.planted import Compass
from tests.saved_subject import save_subject

SMALL = {"levels": 4, "permutations": 49}


@pytest.fixture
def subject(tmp_path: Path) -> dict[str, str]:
    return save_subject(tmp_path)


def test_a_planted_planner_is_found_and_what_sees_walls_or_keys_is_not(
    subject: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the units of the compass, those that see a way are directional; an open cell is told by corners alone."""
    study = DirectionalUnits(subject["agent"], ("conv4a",), entities=("blue_key",), levels=12, permutations=999)
    study.agent, study.taps = Compass().eval(), ("seen",)

    def scenes(state: State, turn: int) -> list[State]:
        return [s for closed in (None, 2 + turn % 4) for s in corner_scenes(state, "blue_key", (4, 4), (3, 3), closed)]

    monkeypatch.setattr(study, "_scenes", scenes)
    report = study.run()
    rows = report.tables["units"].rows
    assert [row[-1] for row in rows] == [""] * 4 + ["yes"] * 4 + [""] * 4
    assert [row[2] for row in rows[4:8]] == list(DIRECTIONS)
    summary = report.summary
    assert summary["direction/seen/directional"] == pytest.approx(4 / 12)
    assert summary["direction/seen/first_step"] == pytest.approx(8 / 12)
    assert summary["direction/seen/detour"] == pytest.approx(4 / 12)
    assert summary["direction/seen/key_side"] == pytest.approx(4 / 12)
    assert summary["direction/seen/exchanged_first_step"] == 0
    for maze in ("corner", "detour"):
        assert summary[f"direction/{maze}/right_way"] == 1


def test_scores_every_unit_beside_an_agent_with_random_weights(subject: dict[str, str]) -> None:
    taps = ("conv4a", "fc1")
    report = DirectionalUnits(subject["agent"], taps, subject["sae"], reading="max", **SMALL).run()
    rows = report.tables["units"].rows
    assert [sum(row[0] == tap for row in rows) for tap in (*taps, "latents")] == [32, 256, 64]
    for tap in taps:
        assert np.isfinite(report.summary[f"direction/{tap}/random_agent_directional"])
    assert report.summary["direction/conv4a/first_step_low"] <= report.summary["direction/conv4a/first_step_high"]
    assert set(report.figures) == {"scenes", "selectivity", "units"}
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert "random weights" in report.pages["directions"]


def test_levels_differ_in_more_than_their_colours(subject: dict[str, str]) -> None:
    study = DirectionalUnits(subject["agent"], ("conv4a",), **SMALL)
    states = [State.from_bytes(data) for data in first_states(study.levels, study.settings)]
    scenes = [study._scenes(state, turn) for turn, state in enumerate(states)]
    assert {len(of_level) for of_level in scenes} == {32}
    assert len({tuple(of_level[0].entities[["x", "y"]][0].tolist()) for of_level in scenes}) > 1
    assert min(study.levels) >= 50_000


def test_corners_lie_in_the_larger_world_of_hard_mode(subject: dict[str, str]) -> None:
    study = DirectionalUnits(subject["agent"], ("conv4a",), distribution_mode="hard", **SMALL)
    state = State.from_bytes(first_states(study.levels[:1], study.settings)[0])
    assert {scene.grid.shape for scene in study._scenes(state, 0)} == {(13, 13)}
    assert np.isfinite(study.run().summary["direction/conv4a/directional"])


def test_refuses_what_cannot_be_asked(subject: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="levels 1"):
        DirectionalUnits(subject["agent"], levels=1)
    with pytest.raises(ValueError, match="taps is empty"):
        DirectionalUnits(subject["agent"], ())
    with pytest.raises(ValueError, match="value has no units"):
        DirectionalUnits(subject["agent"], ("value",))
    with pytest.raises(ValueError, match="nothing to fetch"):
        DirectionalUnits(subject["agent"], entities=("red_lock",))
