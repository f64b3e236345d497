from pathlib import Path

import numpy as np
import pytest
import torch

from interpretability.entity_code import entity_code
from studies import EntityUnits, entity_units
from studies.entity_units import NAMES, _one_side, _peak
from tests.figures import cut_off
from tests.planted import EntityEye
from tests.saved_subject import save_subject

SMALL = {"levels": 4, "permutations": 49}


@pytest.fixture
def subject(tmp_path: Path) -> dict[str, str]:
    return save_subject(tmp_path)


def test_a_planted_code_by_level_is_told_from_an_eye_for_one_entity(subject: dict[str, str]) -> None:
    study = EntityUnits(subject["agent"], ("conv1a",), levels=12, permutations=199)
    study.agent, study.taps = EntityEye().eval(), ("map",)
    report = study.run()
    rows = [row for row in report.tables["units"].rows if row[0] == "map"]
    assert [row[2] for row in rows] == [
        "blue key, green key, red key, blue lock, green lock, red lock",
        "blue key, blue lock",
        "gem",
        "",
    ]
    assert [row[4] for row in rows] == [3, 1, 1, 0]
    assert [name.split()[0] for name in str(rows[0][3]).split(" > ")] == ["blue", "green", "red"]
    assert [row[5] for row in rows[1:]] == pytest.approx([1, 1, 0])
    summary = report.summary
    wanted = {"responds": 3, "identity": 1, "strength_2": 1, "strength_3": 1, "three_keys": 1, "explained": 3}
    assert {name: 4 * summary[f"entities/map/{name}"] for name in wanted} == pytest.approx(wanted)
    assert summary["entities/map/best_decoded"] == pytest.approx(summary["entities/map/best_decoded_high"])
    for name in ("responds", "identity", "strength_2", "three_keys"):
        assert summary[f"entities/map/shuffled_{name}"] == 0


class Shaded(EntityEye):
    """Its channels are lowered, from .5, where there is what `EntityEye` sees."""

    def trunk(self):
        yield "map", lambda acts: 0.5 - self._look(acts)


def test_a_channel_that_an_entity_lowers_is_not_hidden_by_what_lies_around(subject: dict[str, str]) -> None:
    study = EntityUnits(subject["agent"], ("conv1a",), levels=12)
    study.agent, study.taps = Shaded().eval(), ("map",)
    pictures = {split: study._pictures(levels) for split, levels in study.levels.items()}
    found = study._responses(study.agent, None, pictures, study.taps)["map"]
    code = entity_code(found["validation"], found["test"], permutations=199)
    seen = [[name for name, yes in zip(NAMES, row, strict=True) if yes] for row in code.responds(0.9).T]
    assert seen == [[name for name in NAMES if name != "gem"], ["blue_key", "blue_lock"], ["gem"], []]
    assert code.together(0.9).sum(0).tolist() == [3, 1, 1, 0]


def test_a_unit_is_read_on_the_side_that_tells_more() -> None:
    rng = np.random.default_rng(0)
    extremes = rng.normal(0, 0.1, (2, 20, 3, 6)).astype(np.float32)  # two splits; three units, highest and lowest
    extremes[:, :, 0, 0] += 2  # the first entity raises unit 0
    extremes[:, :, 1, 4] -= 2  # the second one lowers unit 1
    extremes[:, :, 0, 2], extremes[:, :, 0, 5] = 1, -3  # unit 2 has an edge of both signs, the further one below
    splits = {"validation": extremes[0], "test": extremes[1]}
    found = _one_side(splits, signed=True)
    np.testing.assert_array_equal(found["test"][:, :, :2], extremes[1][:, :, [0, 4]])
    np.testing.assert_array_equal(found["test"][:, :, 2], extremes[1][:, :, 5])
    np.testing.assert_array_equal(_one_side(splits, signed=False)["test"], extremes[1][:, :, :3])


def test_scores_every_unit_beside_random_weights_shuffled_labels_and_pixels(subject: dict[str, str]) -> None:
    report = EntityUnits(subject["agent"], ("conv2b", "conv4a"), subject["sae"], others=2, **SMALL).run()
    counts = {"pixels": 3, "conv2b": 32, "conv4a": 32, "latents": 64}
    assert {tap: sum(row[0] == tap for row in report.tables["units"].rows) for tap in counts} == counts
    for name in ("responds", "strength_3", "decoded", "best_decoded"):
        assert np.isfinite(report.summary[f"entities/conv4a/random_agent_{name}"])
        assert np.isfinite(report.summary[f"entities/latents/shuffled_{name}"])
    assert {"pictures", "bounds", "levels", *counts} == set(report.figures)
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert "random weights" in report.pages["entities"]
    assert {row[0] for row in report.tables["multiplexing"].rows} == {"conv2b", "conv4a", "all taps"}


def test_the_same_place_of_the_same_maze_on_levels_that_nothing_is_chosen_on(subject: dict[str, str]) -> None:
    study = EntityUnits(subject["agent"], **SMALL)
    scenes, places = study._pictures(study.levels["test"])
    assert len(scenes) == len(places) == 4 * (len(NAMES) + 1)
    assert (places.view(4, -1, 2) == places.view(4, -1, 2)[:, :1]).all()
    assert min(study.levels["test"]) > max(study.levels["validation"])


def test_entities_are_looked_up_in_the_larger_world_of_hard_mode(
    subject: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = EntityUnits(subject["agent"], ("conv4a",), distribution_mode="hard", **SMALL)
    sides = []
    monkeypatch.setattr(
        entity_units, "_peak", lambda acts, places, side, reach: sides.append(side) or _peak(acts, places, side, reach)
    )
    assert np.isfinite(study.run().summary["entities/conv4a/decoded"])
    assert set(sides) == {13}


def test_the_peak_is_looked_for_in_the_cells_around() -> None:
    acts = torch.zeros(1, 3, 18, 18)
    acts[0, 0, 7, 6] = 5  # two positions a cell: cell (3, 5) of 9, y upwards
    acts[0, 1] = -1
    acts[0, 1, 0, 17] = 4  # cell (8, 8)
    acts[0, 2] = -2
    for cell, reach, found in (
        ((3, 5), 0, [5, -1, -2]),
        ((4, 6), 0, [0, -1, -2]),
        ((4, 6), 1, [5, -1, -2]),
        ((8, 7), 1, [0, 4, -2]),
        ((0, 0), 1, [0, -1, -2]),
    ):
        assert _peak(acts, torch.tensor([[cell]]), 9, reach)[0].tolist() == found


def test_refuses_an_autoencoder_of_a_flat_tap(tmp_path: Path) -> None:
    subject = save_subject(tmp_path, tap="fc1")
    with pytest.raises(ValueError, match="fc1 is flat"):
        EntityUnits(subject["agent"], ("conv4a",), subject["sae"], **SMALL)


def test_refuses_what_cannot_be_asked(subject: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="fc1 is flat"):
        EntityUnits(subject["agent"], ("fc1",))
    with pytest.raises(ValueError, match="taps is empty"):
        EntityUnits(subject["agent"], ())
    for wrong in ({"levels": 1}, {"bound": 1.0}, {"others": 6}, {"reach": -1}, {"permutations": 0}):
        with pytest.raises(ValueError, match="give at least 2 and 1"):
            EntityUnits(subject["agent"], **wrong)
