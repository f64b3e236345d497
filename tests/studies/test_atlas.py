import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from environments.heist import ENTITIES
from interpretability.atlas_units import AtlasSettings, cosines
from interpretability.optimised_images import OptimisationSettings
from interpretability.receptive_fields import receptive_field
from networks import CustomCNN, SparseAutoencoder, load_agent, save_weights
from studies import Atlas, Report
from tests.browser import in_browser, needs_browser

SETTINGS = AtlasSettings(3, 2, 32, 8, OptimisationSettings(steps=1, starts=2))
ACTS = """
const ids = () => [...document.querySelectorAll("#gallery a")].map(card => card.hash.slice(1));
const set = (id, value, event) => { at(id).value = value; at(id).dispatchEvent(new Event(event)); };
found.start = ids();
set("kind", "all", "change");
set("sort", "gem", "change");
found.byGem = ids();
at("order").click();
found.turned = ids();
set("sort", "number", "change");
set("filter", "frequency > 0.5% channel", "input");
found.filtered = ids();
set("filter", "nonsense > 3", "input");
found.unknown = at("count").textContent;
set("filter", "", "input");
at("layout").click();
found.rows = document.querySelectorAll("#table tbody tr").length;
location.hash = "latent-17";
await wait(50);
found.name = at("name").textContent;
found.pictures = document.querySelectorAll("#page canvas").length;
found.indexHidden = at("index").hidden;
press("ArrowRight");
await wait(50);
found.next = at("name").textContent;
press("v");
found.view = at("view").value;
press("Escape");
found.back = !at("index").hidden;
await Promise.all([...pictures.values()].map(each => each.ready));
found.loaded = pictures.size;
await fetch("https://example.org/").catch(() => null);  // the page's own policy refuses what leaves it
await wait(50);
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[str, str, str]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("atlas")
    agent, sae = str(folder / "agent.safetensors"), str(folder / "sae.safetensors")
    save_weights(agent, CustomCNN(), {})
    known = {"kind": "SparseAutoencoder", "tap": "conv4a", "agent_hash": load_agent(agent).weights_hash}
    save_weights(sae, SparseAutoencoder(32, 1), known)
    return agent, sae, str(folder / "cache")


@pytest.fixture(scope="module")
def report(weights) -> Report:
    agent, sae, cache = weights
    return Atlas(agent, sae, num_frames=96, settings=SETTINGS, precision="fp32", cache_dir=cache, device="cpu").run()


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory) -> Path:
    written = tmp_path_factory.mktemp("run")
    report.write(written)
    return written / "atlas"


def data_of(folder: Path) -> dict:
    return json.loads((folder / "data.js").read_text().removeprefix("const atlas = ").rstrip().rstrip(";"))


def test_every_unit_has_its_pictures_and_numbers(folder: Path, report: Report, weights) -> None:
    data = data_of(folder)
    assert [unit["id"] for unit in data["units"]] == [
        f"{kind}-{n}" for kind in ("latent", "channel") for n in range(32)
    ]
    assert report.summary["atlas/latent/units"] == report.summary["atlas/channel/units"] == 32
    assert len(report.tables["units"].rows) == 64
    field = receptive_field(load_agent(weights[0]), "conv4a")
    assert field is not None
    assert [data["field"][name] for name in ("size", "stride", "offset")] == [
        list(each) for each in (field.size, field.stride, field.offset)
    ]
    for unit in data["units"]:
        sheet = Image.open(folder / unit["sheet"])
        assert sheet.width == 64 * unit["columns"]
        tiles = sheet.height // 64 * unit["columns"]
        examples = [example for section in unit["sections"] for example in section["examples"]]
        assert [example["tile"] for example in examples] == list(
            range(len(unit["made"]), len(unit["made"]) + len(examples))
        )
        assert tiles >= len(unit["made"]) + len(examples)
        assert set(unit["numbers"]) >= {"frequency", "maximum", "direction", *ENTITIES}
        for example in examples:
            heat = np.frombuffer(base64.b64decode(example["heat"]), dtype=np.uint8).reshape(8, 8)
            assert heat[tuple(example["peak"])] == heat.max() == 255
            assert 0 < example["score"] <= unit["numbers"]["maximum"] * 1.001
        for section in unit["sections"]:
            levels = [example["level"] for example in section["examples"]]
            assert len(levels) == len(set(levels))


def test_the_site_needs_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(", page)
    assert not re.search(r"<!--[A-Z]+-->", page), "every place is filled"


@needs_browser
def test_a_browser_sorts_filters_and_opens_units(folder: Path) -> None:
    found = in_browser(folder / "index.html", ACTS, allowed="example.org")
    units = {unit["id"]: unit["numbers"] for unit in data_of(folder)["units"]}
    assert found["said"] == []
    assert found["wide"] <= 0
    assert len(found["start"]) == 32
    assert {each.partition("-")[0] for each in found["start"]} == {"latent"}
    for ids, sign in ((found["byGem"], -1), (found["turned"], 1)):
        known = [sign * units[each]["gem"] for each in ids if units[each]["gem"] is not None]
        assert len(ids) == 64
        assert known == sorted(known)
    assert found["filtered"] == [each for each in units if units[each]["frequency"] > 0.005 and "channel" in each]
    assert found["unknown"] == "no number is called nonsense"
    assert found["rows"] == 64
    assert (found["name"], found["indexHidden"]) == ("latent 17", True)
    assert found["pictures"] > 4
    assert found["next"] == "latent 18"
    assert found["view"] == "plain"
    assert found["back"]
    assert found["loaded"] > 2
    assert found["refused"] == ["https://example.org/"], "our own attempt, which shows that the policy works"


def test_cosines_by_hand() -> None:
    torch.manual_seed(0)
    narrow, wide = torch.randn(3, 4, 1, 1), torch.randn(2, 4, 3, 3)
    expected = (narrow[1, :, 0, 0] @ wide[0, :, 1, 1]) / (narrow[1].norm() * wide[0].norm())
    assert cosines(narrow, wide)[1, 0] == pytest.approx(float(expected), abs=1e-6)
    np.testing.assert_allclose(np.diag(cosines(wide, wide)), 1)


def test_channels_of_a_flat_tap_alone_and_of_another_game(weights) -> None:
    agent, _, cache = weights
    settings = AtlasSettings(2, 1, 8, 4, OptimisationSettings(steps=1, starts=1))
    study = Atlas(agent, tap="logits", game="maze", num_frames=64, settings=settings, cache_dir=cache, device="cpu")
    report = study.run()
    assert "atlas/channel/auc" not in report.summary
    assert b'"gem":' not in report.sites["atlas"]["data.js"]


def test_channels_that_fall_below_zero_are_shown_on_both_sides(weights) -> None:
    agent, _, cache = weights
    settings = AtlasSettings(2, 1, 8, 4, OptimisationSettings(steps=1, starts=1))
    known = {"num_frames": 64, "settings": settings, "precision": "fp32", "cache_dir": cache, "device": "cpu"}
    study = Atlas(agent, tap="conv4a.pre", **known)
    report = study.run()
    data = json.loads(report.sites["atlas"]["data.js"].decode().removeprefix("const atlas = ").rstrip().rstrip(";"))
    units = {unit["id"]: unit for unit in data["units"]}
    assert report.summary["atlas/below/units"] == report.summary["atlas/channel/units"] == 32
    assert units["below-7"]["name"] == "channel 7, below 0"
    frames = torch.cat([batch.frames for batch in study.data.val_dataloader()])
    with torch.no_grad():
        acts = load_agent(agent)(frames, record=("conv4a.pre",)).activations["conv4a.pre"]
    for number in range(32):
        up, down = (units[f"{kind}-{number}"]["numbers"] for kind in ("channel", "below"))
        assert up["maximum"] == pytest.approx(float(acts[:, number].max()), rel=1e-3, abs=1e-6)
        assert down["maximum"] == pytest.approx(-float(acts[:, number].min()), rel=1e-3, abs=1e-6)
        assert up["frequency"] + down["frequency"] == pytest.approx(1, abs=1e-3)
    assert "channel 7, below 0" in report.sites["atlas"]["index.html"].decode()


def test_what_does_not_fit_is_refused(weights) -> None:
    agent, sae, _ = weights
    with pytest.raises(ValueError, match="leave tap null"):
        Atlas(agent, sae, tap="conv3a")
    with pytest.raises(ValueError, match="num_frames 0"):
        Atlas(agent, tap="conv4a", num_frames=0)
    with pytest.raises(ValueError, match="nothing to show"):
        Atlas(agent)
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        Atlas(agent, tap="conv9")
    with pytest.raises(ValueError, match="best is 0"):
        AtlasSettings(best=0)
