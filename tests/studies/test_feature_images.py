from typing import Any

import pytest
import torch
from torch import Tensor

from interpretability.optimised_images import OptimisationSettings
from networks import load_agent, save_weights
from networks.linear_readout import LinearReadout
from studies import FeatureImages
from studies.feature_images import Patch, Wanted
from tests.saved_subject import save_subject

QUICK = OptimisationSettings(steps=2, starts=2)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("images")
    paths = save_subject(folder)
    origin = {"agent_hash": load_agent(paths["agent"]).weights_hash, "tap": "conv4a"}
    for name, form in (("probe", "position"), ("flat", "flat")):
        readout = LinearReadout("conv4a", form, (32, 8, 8), (32, 8, 8), {"gem": ("elsewhere", "here")})  # type: ignore[arg-type]
        torch.nn.init.normal_(readout.weight)
        readout.component_std.fill_(1)
        readout.fitted.fill_(True)
        paths[name] = str(folder / f"{name}.safetensors")
        save_weights(paths[name], readout, {"kind": "LinearReadout", **origin, "config": readout.config()})
    return paths


def study(known: dict[str, str], **changes: Any) -> FeatureImages:
    settings: dict[str, Any] = {"tap": "conv4a", "num_frames": 64, "settings": QUICK, "precision": "fp32", **changes}
    return FeatureImages(known["agent"], cache_dir=known["cache"], **settings)


def test_the_highest_in_the_game_is_that_of_its_frames(known: dict[str, str]) -> None:
    wanted = [Wanted(3), Wanted(3, minus=7), Wanted(4, position=(2, 5))]
    one = study(known, wanted=wanted)
    report = one.run()
    frames = torch.cat([batch.frames for batch in one.data.val_dataloader()])
    with torch.no_grad():
        acts = load_agent(known["agent"])(frames, record=("conv4a",)).activations["conv4a"]
    highest = [row[2] for row in report.tables["images"].rows]
    expected = [acts[:, 3].max(), (acts[:, 3] - acts[:, 7]).max(), acts[:, 4, 2, 5].max()]
    torch.testing.assert_close(torch.tensor(highest), torch.stack(expected))
    assert report.summary["images/count"] == 3
    assert isinstance(report.figures["images"], Tensor)


def test_where_units_fall_below_zero_they_can_be_driven_down(known: dict[str, str]) -> None:
    one = study(known, tap="conv4a.pre", wanted=[Wanted(3, sign=-1)])
    report = one.run()
    frames = torch.cat([batch.frames for batch in one.data.val_dataloader()])
    with torch.no_grad():
        acts = load_agent(known["agent"])(frames, record=("conv4a.pre",)).activations["conv4a.pre"]
    (row,) = report.tables["images"].rows
    assert row[0] == "3, below 0"
    assert row[2] == pytest.approx(-float(acts[:, 3].min()), rel=1e-4)
    assert len(study(known, tap="conv4a.pre").wanted) == 2 * len(study(known, tap="conv4a").wanted)


def test_all_latents_probe_directions_and_patches(known: dict[str, str]) -> None:
    assert len(study(known, tap=None, sae=known["sae"]).run().tables["images"].rows) == 64
    probe = Wanted(probe=known["probe"], target="gem", answer="here", cosine_power=1.0)
    box = (8, 8, 40, 40)
    report = study(known, wanted=[probe], inside=Patch(7, box)).run()
    assert report.tables["images"].rows[0][0] == "gem: here"


def test_what_cannot_be_meant_is_refused(known: dict[str, str]) -> None:
    faults: list[tuple[dict[str, Any], str]] = [
        ({"wanted": []}, "wanted is empty"),
        ({"wanted": [Wanted(32)]}, "conv4a has 32 units"),
        ({"images": 2}, "would come out alike"),
        ({"wanted": [Wanted(3, sign=-1)]}, "no unit of conv4a falls below 0"),
        ({"tap": None}, "give tap, or sae"),
        ({"tap": "conv3a", "sae": known["sae"]}, "leave tap null"),
        ({"wanted": [Wanted(probe=known["flat"], target="gem", answer="here")]}, "reads a whole map"),
        ({"tap": "conv3a", "wanted": [Wanted(probe=known["probe"], target="gem", answer="here")]}, "set tap to conv4a"),
    ]
    for changes, match in faults:
        with pytest.raises(ValueError, match=match):
            study(known, **changes)
    for arguments, match in [
        ({}, "give either unit"),
        ({"unit": 1, "probe": "p"}, "give either unit"),
        ({"unit": 1, "minus": 2, "sign": -1}, "of a unit alone"),
        ({"unit": 1, "sign": 2}, "sign is 1, or -1"),
    ]:
        with pytest.raises(ValueError, match=match):
            Wanted(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="within 0 to 64"):
        Patch(0, (0, 0, 70, 3))
