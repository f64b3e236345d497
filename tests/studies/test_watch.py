import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import analyse
from environments import EnvironmentSettings, State
from environments.heist import label_states, occupied_cells
from interpretability.replay import replay
from networks import ChannelEdit, CustomCNN, SparseAutoencoder, load_agent, save_weights
from studies import Watch
from studies.watch import parse_actions
from tests.browser import in_browser, needs_browser

ROOT = Path(__file__).parents[2]
TINY = {"max_steps": 6, "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "agent.safetensors"
    save_weights(path, CustomCNN(), {})
    return str(path)


@pytest.fixture(scope="module")
def sae(agent, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "sae.safetensors"
    metadata = {"kind": "SparseAutoencoder", "tap": "conv4a", "agent_hash": load_agent(agent).weights_hash}
    save_weights(path, SparseAutoencoder(32), metadata)
    return str(path)


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))


def test_page_shows_the_frames_actions_and_oracle_of_actions_by_hand(agent):
    report = Watch(agent, level=3, actions="r R u d. 7", show={"conv4a": 2, "conv3a": [4]}, **TINY).run()
    assert report.summary == {"watch/steps": 6, "watch/solved": 0}
    page = report.pages["level_3"]
    data = page_data(page)
    expected = replay(3, [7, 7, 5, 3, 4, 2], EnvironmentSettings())
    assert data["actions"] == expected.actions.tolist() == [row[1] for row in report.tables["steps"].rows]
    sheet, columns = picture(data["frames"]["uri"]), data["frames"]["columns"]
    for step, frame in enumerate(expected.frames):
        top, left = 64 * (step // columns), 64 * (step % columns)
        assert np.array_equal(sheet[top : top + 64, left : left + 64], frame)
    assert data["oracle"]["moves"] == label_states(expected.states).main_action.tolist()
    assert [source["name"] for source in data["sources"]] == ["conv4a", "conv3a"]
    assert data["sources"][1]["units"] == ["channel 4"]
    np.testing.assert_allclose(np.sum(data["arms"][0]["probabilities"], axis=1), 1, atol=1e-3)
    assert "level 3: the first 6 steps" in page
    assert "given by hand" in page
    assert len(report.films["level_3"].frames) == 6


def test_page_stands_alone_and_is_small(agent):
    page = Watch(agent, max_steps=100, show={"conv1a": 4}, device="cpu").run().pages["level_0"]
    assert len(page) < 5e6
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)
    assert not re.search(r"<!--[A-Z]+-->", page), "every place is filled"


def test_an_autoencoder_stands_beside_the_untouched_agent(agent, sae):
    report = Watch(agent, sae=sae, show={"sae": 3, "conv4a": 1}, play_edited=True, **TINY).run()
    data = page_data(report.pages["level_0"])
    assert [arm["name"] for arm in data["arms"]] == ["untouched", "edited"]
    assert [len(source["sheets"]) for source in data["sources"]] == [1, 2]
    assert report.summary["watch/kl"] == pytest.approx(np.mean(data["divergence"]), rel=1e-3), "however small"
    assert 0 <= report.summary["watch/action_agreement"] <= 1
    assert f"the autoencoder {sae} in place of conv4a" in report.pages["level_0"]
    assert "Played by the edited agent" in report.pages["level_0"]


def test_an_edit_that_changes_nothing_makes_no_difference(agent):
    report = Watch(agent, edit=torch.nn.Identity(), tap="conv4a", **TINY).run()
    assert report.summary["watch/kl"] == 0
    assert report.summary["watch/action_agreement"] == 1


def test_a_saved_edit_is_put_in_at_its_own_tap(agent, tmp_path):
    edit = ChannelEdit(32)
    with torch.no_grad():
        edit.scale[3] = -1
    path = tmp_path / "edit.safetensors"
    save_weights(path, edit, {"kind": "ChannelEdit", "tap": "conv3a", "entity": "gem", "agent_hash": ""})
    saved = Watch(agent, saved_edit=str(path), play_edited=True, **TINY).run()
    given = Watch(agent, edit=edit, tap="conv3a", play_edited=True, **TINY).run()
    assert saved.summary == given.summary
    assert saved.summary["watch/kl"] > 0
    assert f"Edit: {path} at conv3a" in saved.pages["level_0"]


def test_a_maze_in_which_two_entities_can_be_fetched(agent):
    study = Watch(agent, level=5, fetchable=["gem", "red_key"], **TINY)
    page = study.run().pages["level_5"]
    assert "level 5: gem and red key can be fetched at once" in page
    things = [name for names in occupied_cells(State.from_bytes(study.start)).values() for name in names]
    assert {"gem", "red_key"} <= set(things)
    assert not {"blue_key", "green_key"} & set(things)
    first = picture(page_data(page)["frames"]["uri"])[:64, :64]
    assert np.array_equal(first, replay(5, [4], EnvironmentSettings(), study.start).frames[0])
    assert not np.array_equal(first, replay(5, [4], EnvironmentSettings()).frames[0])


def test_another_game_has_no_oracle(agent):
    page = Watch(agent, game="maze", **TINY).run().pages["level_0"]
    assert page_data(page)["oracle"] is None


def test_a_name_cannot_become_part_of_the_page(agent, tmp_path):
    path = tmp_path / "<b>&.safetensors"
    shutil.copy(agent, path)
    page = Watch(str(path), **TINY).run().pages["level_0"]
    assert "&lt;b&gt;&amp;.safetensors" in page
    assert "<b>&" not in page


def test_the_shipped_configuration_runs(agent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--config", str(ROOT / "configs/studies/watch.yaml"), f"--study.agent={agent}", "--study.max_steps=2"]
    assert analyse.main([*command, "--study.actions=RU", "--study.show.conv2b=2"]) == 0
    folder = tmp_path / "runs/watch/version_0"
    data = page_data((folder / "pages/level_7.html").read_text())
    assert {source["name"]: len(source["units"]) for source in data["sources"]} == {
        "conv3a": 8,
        "conv4a": 8,
        "conv2b": 2,
    }
    assert (folder / "films/level_7.gif").exists()
    assert "level_7.html" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_script_is_whole(agent, tmp_path):
    page = Watch(agent, **TINY).run().pages["level_0"]
    script = tmp_path / "page.js"
    script.write_text(re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0])
    subprocess.run(["node", "--check", str(script)], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actions": "RXQ"}, "Q X is no action"),
        ({"actions": " "}, "nothing is no action"),
        ({"actions": "R", "play_edited": True, "ablation": "zero", "tap": "conv4a"}, "by hand"),
        ({"play_edited": True}, "asks for an edit"),
        ({"level": -1}, "level -1"),
        ({"level": 2**31}, "seeds of levels end at 2147483646"),
        ({"show": {"conv9": 3}}, "show: CustomCNN has no tap 'conv9': choose among conv1a.pre"),
        ({"max_steps": 0}, "max_steps 0"),
        ({"show": {"fc1": 3}}, "fc1 has no map"),
        ({"show": {"sae": 3}}, "give the autoencoder's file"),
        ({"tap": "conv4a"}, "without an ablation"),
        ({"saved_edit": "edit.safetensors", "ablation": "zero", "tap": "conv4a"}, "exclude each other"),
        ({"saved_edit": "edit.safetensors"}, "edit.safetensors"),
        ({"game": "chess"}, "no game 'chess'"),
        ({"game": "maze", "fetchable": ["gem", "red_key"]}, "heist, easy or hard, not in maze"),
        ({"fetchable": ["gem"]}, "two to four"),
        ({"fetchable": ["gem", "red_key"], "choose": "greedy"}, "played by sampling"),
    ],
)
def test_mistakes_stop_before_any_work(agent, arguments, message):
    with pytest.raises(ValueError, match=message):
        Watch(**{"agent": agent} | TINY | arguments)


def test_letters_go_where_they_say():
    moves = {letter: (action // 3 - 1, action % 3 - 1) for letter in "LRUD.7913" for action in parse_actions(letter)}
    assert moves == {
        "L": (-1, 0), "R": (1, 0), "U": (0, 1), "D": (0, -1), ".": (0, 0),
        "7": (-1, 1), "9": (1, 1), "1": (-1, -1), "3": (1, -1),
    }  # fmt: skip


@needs_browser
def test_a_browser_steps_through_an_episode(agent, tmp_path):
    study = Watch(agent, level=3, actions="rRud.7", ablation="zero", tap="conv4a", show={"conv3a": 8}, **TINY)
    (tmp_path / "page.html").write_text(study.run().pages["level_3"])
    acts = """
      const pixels = id => at(id).toDataURL();
      await wait(500);
      const seen = () => [at("where").textContent, document.querySelector("#sources h2").textContent];
      found.first = seen(); found.sharp = pixels("frame");
      press("ArrowRight"); press("ArrowRight"); found.third = seen(); found.moved = pixels("frame") !== found.sharp;
      delete found.sharp;
      press("e"); found.edited = seen();
      press("End"); found.last = seen();
      found.maps = document.querySelectorAll(".unit canvas").length;
    """
    for window in ((1366, 768), (500, 900)):
        found = in_browser(tmp_path / "page.html", acts, window)
        assert found["said"] == []
        assert found["wide"] <= 0
        assert found["first"] == ["step 1 of 6", "Maps of conv3a, untouched agent"]
        assert found["third"][0] == "step 3 of 6"
        assert found["moved"]
        assert found["edited"][1] == "Maps of conv3a, edited agent"
        assert found["last"][0] == "step 6 of 6"
        assert found["maps"] == 8
