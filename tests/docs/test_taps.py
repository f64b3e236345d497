import re
import shlex

import pytest
import torch
import yaml

import analyse
import train
from interpretability.receptive_fields import receptive_field
from networks import ResidualImpala, save_weights
from studies import Study
from tests.small_configs import ROOT

PAGE = (ROOT / "docs/taps.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Another network") :]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
    if line.startswith("python train.py")
]
TABLE = SECTION[SECTION.index("| study |") :].split("\n\n")[0].splitlines()[2:]
STUDIES = [
    (study, (re.findall(r"`(--[^`]+)`", options) or [""])[0])
    for studies, options in (line.strip("| ").split(" | ") for line in TABLE)
    for study in re.findall(r"`(\w+)`", studies)
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("taps") / "agent.safetensors"
    save_weights(path, ResidualImpala(), {})
    return str(path)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[3])
def test_every_training_of_another_network_is_accepted(command: str, agent: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("$AGENT", agent))[2:]
    with pytest.raises(SystemExit) as stop:
        train.main([*words, "--print_config"])
    assert stop.value.code == 0
    said = yaml.safe_load(capsys.readouterr().out)
    model, data = (said[part]["init_args"] for part in ("model", "data"))
    assert {*data.get("taps", []), model.get("tap") or "fc1"} <= ResidualImpala().taps.keys()
    assert "networks.ResidualImpala" in str(model) or agent in str(data)


@pytest.mark.parametrize(("study", "options"), STUDIES)
def test_every_study_takes_another_network(study: str, options: str, agent: str, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    parser = analyse.build_parser()
    config = ["--config", f"configs/studies/{study}.yaml", "--study.agent", agent]
    assert isinstance(parser.instantiate(parser.parse_args([*config, *shlex.split(options)])).study, Study)


def test_every_study_is_spoken_of() -> None:
    without_network = {"scenarios", "asked_returns", "learning_curve"}
    for path in (ROOT / "configs/studies").glob("*.yaml"):
        assert path.stem in without_network or f"`{path.stem}" in SECTION, path.stem


def test_fields_of_view_are_those_of_the_network() -> None:
    net = ResidualImpala()
    rows = re.findall(r"^\| `(seq[\w.]+)` \| (\d+) x (\d+).*? \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for tap, height, width, stride in rows:
        field = receptive_field(net, tap)
        assert field is not None
        assert (field.size, field.stride) == ((int(height), int(width)), (int(stride), int(stride)))
    field = receptive_field(net, "seq3.block2")
    assert field is not None
    for place in (0, 7):
        top, _, bottom, _ = field.box(place, place)
        assert top <= 0
        assert bottom >= 64
