from typing import Any

import pytest
import torch

from datamodules.recorder import PlaySettings
from studies import ProbeAtlas
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


def test_natural_deconfounded_and_carried_over(known: dict[str, str]) -> None:
    study = ProbeAtlas(known["agent"], known["sae"], cache_dir=known["cache"], **SMALL)
    report = study.run()
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
    page = report.pages["probes"]
    assert page.count("<h2") == 5
    assert page.count("data:image/png") >= 6
    sparse = report.tables["sparse"].rows
    assert {row[2] for row in sparse} == {"latents", "channels"}
    assert {row[3] for row in sparse} == {1, 4, 16}
    assert {row[1] for row in sparse} == {"target", "held_blue_key"}


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
        ({"num_frames": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            ProbeAtlas(known["agent"], known["sae"], cache_dir=known["cache"], **{**SMALL, **changes})
