"""How large is a number? Also how several studies are run one after another."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from rich.console import Console

import analyse
from interpretability.films import Film
from networks import CustomCNN
from studies import Report, Study, StudyList, Table
from studies.plain_page import with_pages
from studies.tensorboard import write_events


class Known(Study):
    """Finds what it was told.

    And more.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def run(self) -> Report:
        figure = Figure(figsize=(1, 1))
        numbers = {"found/value": self.value, "found/value_low": 0.0, "found/value_high": 1.0}
        table = Table(["a"], [[1]])
        return Report(numbers, {"one": table}, {"drawn": figure}, pages={"own": "<html><body></body></html>"})


class Plain(Known):
    """Finds what it was told.

    And more. Not on the page.

    Summary: `found/value`, the number found.

    Args:
        value: its maker's.
    """

    def run(self) -> Report:
        film = Film(np.zeros((2, 8, 8, 3), dtype=np.uint8))
        hidden = Table(["a"], [["never shown"]], printed=False)
        known = super().run()
        return replace(known, tables={**known.tables, "hidden": hidden}, films={"moving_thing": film}, pages={})


class Careful(Known):
    def __init__(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"value {value} must not be negative")
        super().__init__(value)


class Failing(Study):
    def run(self) -> Report:
        raise ValueError("no such level")


class Counted(Study):
    """Writes a line into a diary whenever it runs, and then does what the diary's neighbour says."""

    def __init__(self, diary: str, name: str) -> None:
        self.diary, self.name = Path(diary), name

    def run(self) -> Report:
        with self.diary.open("a") as file:
            file.write(f"{self.name}\n")
        order = self.diary.with_name(f"{self.name}.txt")
        if order.exists():
            raise {"stop": KeyboardInterrupt, "exit": SystemExit, "fail": KeyError}[order.read_text()]("the third map")
        return Known(0.5).run()


def test_a_list_that_was_stopped_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first study is written when it is done; the same command runs the second again, and then the third."""
    own = "tests.studies.test_study_list.Counted"
    diary = tmp_path / "diary.txt"
    studies = {
        name: {"class_path": own, "init_args": {"diary": str(diary), "name": name}}
        for name in ("first", "second", "third")
    }
    config = {"study": {"class_path": "studies.StudyList", "init_args": {"studies": studies}}}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(config))
    command = ["--config", str(tmp_path / "list.yaml"), "--root", str(tmp_path / "runs")]
    folder = tmp_path / "runs/list/version_0"
    (tmp_path / "second.txt").write_text("stop")
    assert analyse.main(command) == 130
    assert f"interrupted: {folder}; the same command goes on with it" in capsys.readouterr().err
    assert json.loads((folder / "first/summary.json").read_text())["found/value"] == 0.5
    assert not (folder / "summary.json").exists()
    (tmp_path / "second.txt").write_text("fail")
    assert analyse.main(command) == 0
    assert diary.read_text().split() == ["first", "second", "second", "third"]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["first/found/value"], summary["studies/failed"]) == (0.5, 1)
    assert "KeyError: 'the third map'" in (folder / "second/error.log").read_text()
    page = (folder / "pages/index.html").read_text()
    links = [part.split('"')[0] for part in page.split('href="')[1:] if not part.startswith("#")]
    assert "../second/error.log" in links
    assert len(links) == 4 + 1 + 4 + 3, "numbers, settings and the table of the list itself"
    for link in links:
        assert (folder / "pages" / link).resolve().is_file(), link
    assert list((folder / "first").glob("events*"))
    own_page = (folder / "first/pages/own.html").read_text()
    for link in ("../summary.json", "../../config.yaml", "../tables/one.csv"):
        assert f'href="{link}"' in own_page
        assert (folder / "first/pages" / link).resolve().is_file(), link
    assert analyse.main(command) == 0
    assert len(diary.read_text().split()) == 7, "a list that is finished is run anew"
    assert (folder.parent / "version_1/summary.json").exists()


def test_a_list_of_which_nothing_was_done_leaves_nothing_but_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diary = tmp_path / "diary.txt"
    study = {"class_path": "tests.studies.test_study_list.Counted", "init_args": {"diary": str(diary), "name": "one"}}
    config = {"study": {"class_path": "studies.StudyList", "init_args": {"studies": {"one": study}}}}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(config))
    command = ["--config", str(tmp_path / "list.yaml"), "--root", str(tmp_path / "runs")]
    for order in ("stop", "exit"):  # Ctrl-C, and what Lightning makes of it
        (tmp_path / "one.txt").write_text(order)
        assert analyse.main(command) == 130
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == "interrupted: what was kept is found again by the same command"
        assert not (tmp_path / "runs").exists()
    (tmp_path / "one.txt").write_text("fail")
    with pytest.raises(ValueError, match="all studies failed: one: 'the third map'"):
        analyse.main(command)
    assert "Traceback" in (tmp_path / "runs/list/version_0/one/error.log").read_text()


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ({"value": "x"}, 2, "study.init_args.studies.second.init_args.value: Expected a <class 'float'>"),
        ({"valeu": 1.0}, 2, "unknown key study.init_args.studies.second.init_args.valeu"),
        ({"value": -1.0}, 1, "error: second: value -1.0 must not be negative"),
    ],
)
def test_a_mistake_in_a_list_names_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: dict[str, object], code: int, message: str
) -> None:
    own = "tests.studies.test_study_list.Careful"
    studies = {
        "first": {"class_path": own, "init_args": {"value": 1.0}},
        "second": {"class_path": own, "init_args": given},
        "third": {"class_path": own, "init_args": {"value": 1.0}},
    }
    config = {"study": {"class_path": "studies.StudyList", "init_args": {"studies": studies}}}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(config))
    try:
        result = analyse.main(["--config", str(tmp_path / "list.yaml"), "--root", str(tmp_path / "runs")])
    except SystemExit as stop:
        result = stop.code
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert result == code


def test_every_study_has_its_folder_and_the_page_leads_there(tmp_path: Path) -> None:
    report = StudyList({"first": Known(0.25), "broken": Failing(), "second": Known(0.75)}).run()
    assert report.summary["first/found/value"] == 0.25
    assert report.summary["second/found/value_high"] == 1.0
    assert (report.summary["studies/count"], report.summary["studies/failed"]) == (3, 1)
    report.write(tmp_path)
    write_events(report, tmp_path)
    page = (tmp_path / "pages" / "index.html").read_text()
    links = [part.split('"')[0] for part in page.split('href="')[1:] if not part.startswith("#")]
    assert len(links) == 8
    for link in links:
        assert (tmp_path / "pages" / link).resolve().is_file(), link
    assert "no such level" in page
    assert "Finds what it was told." in page
    assert "And more" not in page
    assert "0.2 (0.0 to 1.0)" in page
    assert list((tmp_path / "second").glob("events*"))
    report.show(Console(quiet=True), tmp_path)


def test_a_study_that_makes_no_page_gets_one(tmp_path: Path) -> None:
    """With its question, what it did, its figures, films, printed tables and numbers."""
    study = Plain(0.25)
    study.agent = CustomCNN()
    study.agent.metadata = {"training": "PPO", "parent": {"training": "<clone>"}}
    report = with_pages(study.run(), study, "../config.yaml")
    report.write(tmp_path)
    assert list(report.pages) == ["index"]
    page = report.pages["index"]
    words_of = ["How large is a number?", "Finds what it was told.", "the number found", "0.2 (0.0 to 1.0)"]
    for words in (*words_of, ">One<", ">Drawn<", ">Films<", "CustomCNN; training: PPO, begun as &lt;clone&gt;."):
        assert words in page, words
    assert "And more" in page
    assert "its maker's" not in page
    assert "never shown" not in page
    for link in re.findall(r'(?:href|src)="(\.\./[^"]+)"', page):
        assert link == "../config.yaml" or (tmp_path / "pages" / link).resolve().is_file(), link
    assert 'src="../films/moving_thing.gif"' in page


def test_nothing_to_do_and_nothing_done_are_said() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        StudyList({})
    with pytest.raises(ValueError, match="gives its folder its name"):
        StudyList({"../up": Known(1.0)})
    with pytest.raises(ValueError, match="all studies failed: broken: no such level"):
        StudyList({"broken": Failing()}).run()
