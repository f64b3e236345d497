import html
from typing import Any

import pytest
import torch

from datamodules.recorder import PlaySettings
from environments.heist import POSITION_TARGETS, choose_targets
from studies import ProbeAtlas, Report
from tests.figures import cut_off
from tests.saved_subject import save_subject

TARGETS = ["target", "held_blue_key", "path_length"]
SMALL: dict[str, Any] = {
    "taps": ["conv4a", "fc1"],
    "targets": TARGETS,
    "num_frames": 256,
    "validation_frames": 64,
    "test_frames": 128,
    "max_features": 512,  # of conv4a a map of 4 x 4
    "random_agent": False,
    "play": PlaySettings(environments=16, steps=16),
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_subject(tmp_path_factory.mktemp("probes"), 2)


@pytest.fixture(scope="module")
def report(known: dict[str, str]) -> Report:
    return ProbeAtlas(known["agent"], known["sae"], cache_dir=known["cache"], **SMALL).run()


def test_natural_deconfounded_and_carried_over(report: Report) -> None:
    for data in ("natural", "deconfounded", "transfer"):
        for target, score in (("target", "accuracy"), ("path_length", "r2")):
            name = f"probe/{data}/flat/{target}/best/{score}"
            assert report.summary[f"{name}_low"] <= report.summary[name] <= report.summary[f"{name}_high"]
            assert f"probe/{data}/flat/{target}/best/control_pixels" in report.summary
    same = "probe/{}/flat/target/fc1/accuracy"
    assert report.summary[same.format("transfer")] != report.summary[same.format("deconfounded")]
    table = report.tables["probes"]
    # flat: 3 targets x 2 taps, position: 9 things x 1 map, of which some may never be seen, for three kinds of data
    assert {row[0] for row in table.rows} == {"natural", "deconfounded", "natural to deconfounded"}
    assert sum(row[1] == "flat" for row in table.rows) == 18
    assert set(report.figures) >= {"natural_flat", "natural_position", "natural_to_deconfounded_flat"}
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    page = report.pages["probes"]
    assert page.count("<h2") == 7
    assert page.count("data:image/png") >= 6
    sparse = report.tables["sparse"].rows
    assert {row[2] for row in sparse} == {"latents", "channels"}
    assert {row[3] for row in sparse} == {1, 4, 16}
    assert {row[1] for row in sparse} == {"target", "held_blue_key"}


def test_the_page_begins_with_the_headline_and_the_oracles(report: Report) -> None:
    headline = report.tables["headline"].records()
    flat = [row for row in headline if row["form"] == "flat"]
    assert [(row["target"], row["data"]) for row in flat] == [
        (target, data) for target in TARGETS for data in ("natural", "deconfounded", "natural to deconfounded")
    ]
    for row in headline:
        data = str(row["data"]).replace("natural to deconfounded", "transfer")
        name = f"probe/{data}/{row['form']}/{row['target']}/best"
        assert row["value"] == report.summary[f"{name}/{row['score']}"]
        assert row["pixels"] == report.summary[f"{name}/control_pixels"]
        assert (
            row["above pixels"] == report.summary[f"{name}/above_pixels"] == pytest.approx(row["value"] - row["pixels"])
        )
        assert row["above pixels low"] == report.summary[f"{name}/above_pixels_low"] <= row["above pixels"]
    scores = report.tables["probes"].records()
    assert {"control pixels_pca", "control shuffled", "control majority"} <= set(scores[0])
    for row in headline:
        (same,) = [
            each
            for each in scores
            if each["best tap"] and all(each[name] == row[name] for name in ("data", "form", "target"))
        ]
        assert same["tap"] == row["tap"]
    targets = {row["target"]: row for row in report.tables["targets"].records()}
    assert set(targets) == {*TARGETS, *(f"{name} (position)" for name in POSITION_TARGETS)}
    assert targets["target"]["answers"] == "blue_key, green_key, red_key, gem"
    for data in ("natural", "deconfounded"):
        chance = report.summary[f"probe/{data}/flat/target/best/control_majority"]
        assert targets["target"][f"chance, {data}"] == chance
        assert targets["path_length"][f"chance, {data}"] == pytest.approx(0, abs=0.3)
    assert 0.2 < targets["target"]["chance, deconfounded"] < 0.5, "four as frequent answers"
    page = report.pages["probes"]
    assert page.index("the best tap of each target") < page.index("targets and their oracles") < page.index("<img")
    assert "shuffled labels" in page
    assert "random weights" not in page, "that control was not run"
    assert choose_targets(["target"])[0].oracle in html.unescape(page)


def test_sparse_features_are_of_the_tap_as_it_is(known: dict[str, str]) -> None:
    """A tap that is mean-pooled for flat probes is not so for latents, which are no linear function of it."""
    study = ProbeAtlas(known["agent"], known["sae"], cache_dir=known["cache"], **SMALL)
    data = study.data["natural"]
    found = data.tap_features("conv4a", lambda acts: acts.float().amax((2, 3)))
    frames = torch.cat([shard["frames"] for shard in data._shards["test"]])
    with torch.no_grad():
        acts = data.agent(frames, record=("conv4a",)).activations["conv4a"]
    torch.testing.assert_close(found["test"].activations, acts.amax((2, 3)), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused_before_any_work(known: dict[str, str]) -> None:
    for changes, match in [
        ({"taps": ["fc1"]}, "which taps leave out"),
        ({"targets": ["colour"]}, "there is no target 'colour'"),
        ({"num_frames": 0}, "num_frames is 0: at least 1"),
        ({"taps": []}, "taps is empty"),
        ({"targets": []}, "targets is empty"),
        ({"forms": ()}, "choose at least one"),
    ]:
        with pytest.raises(ValueError, match=match):
            ProbeAtlas(known["agent"], known["sae"], cache_dir=known["cache"], **{**SMALL, **changes})
