from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from studies import Report, Study, StudyList, Table
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
        return Report(numbers, {"one": table}, {"drawn": figure}, pages={"own": "<html></html>"})


class Failing(Study):
    def run(self) -> Report:
        raise ValueError("no such level")


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
    assert "0 to 1" in page
    assert list((tmp_path / "second").glob("events*"))
    report.show(Console(quiet=True), tmp_path)


def test_nothing_to_do_and_nothing_done_are_said() -> None:
    with pytest.raises(ValueError, match="name at least one"):
        StudyList({})
    with pytest.raises(ValueError, match="gives its folder its name"):
        StudyList({"../up": Known(1.0)})
    with pytest.raises(ValueError, match="all studies failed: broken: no such level"):
        StudyList({"broken": Failing()}).run()
