"""The command line of studies: what is said of a mistake."""

import os
from pathlib import Path

import pytest

import analyse
from commands import one_line

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--config", str(CONFIGS / "sae_conv4.yaml")], "is for train.py: give this configuration to python train.py"),
        ([], "no study is given: write --config configs/studies/NAME.yaml"),
        (["some/file.yaml"], "some/file.yaml is a configuration: write --config some/file.yaml"),
    ],
)
def test_a_file_given_wrongly_is_told_apart(
    capsys: pytest.CaptureFixture[str], given: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        analyse.main(given)
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_what_jsonargparse_tried_besides_is_left_out() -> None:
    wrapped = (
        "Does not validate against any of the Union subtypes\nSubtypes: [A, B]\nErrors:\n"
        "  - width is 0: at least 1 is needed\n  - Not a valid subclass of Callback\n"
        "    Subclass types expect one of:\n    - a class path (str)\n"
        "  - Expected a <class 'NoneType'>\nGiven value type: <class 'list'>"
    )
    assert one_line(ValueError(wrapped)) == "width is 0: at least 1 is needed"
    only = "Does not validate against any of the Union subtypes\nErrors:\n  - Not a valid subclass of Callback"
    assert one_line(ValueError(only)) == "Not a valid subclass of Callback"


@pytest.mark.parametrize("name", ["", "../up"])
def test_a_run_stays_under_its_root(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    study = ["--study", "tests.studies.test_study_list.Known", "--study.value", "1"]
    root = tmp_path / "deep/runs"
    assert analyse.main([*study, "--root", str(root), "--name", name]) == 1
    assert f"--name {name!r}" in capsys.readouterr().err
    assert not os.listdir(tmp_path)
