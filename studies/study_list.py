"""Several studies, one after another, with one page that leads to all of them."""

import json
import math
import time
import traceback
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from interpretability.report_page import Link, Section, in_words, report_page
from networks.files import write_atomically
from studies.plain_page import number_rows, question, with_pages
from studies.report import Cell, Report, Study, Table
from studies.tensorboard import write_events

_DONE: Final = "study.json"
_LOG: Final = "error.log"


class StudyList(Study):
    """Runs studies in order and links what they wrote from one page.

    Each study writes into a folder of its name as soon as it is done; `pages/index.html` leads to pages, figures and
    numbers of all. One that fails is reported there, with what Python said of it in `NAME/error.log`, and does not stop
    the others. The same command goes on with an unfinished list: what was written is not run again. Summary: all
    numbers of each study behind its name and a slash, `studies/count`, `studies/failed`, and `studies/NAME/seconds`.

    Args:
        studies: by name.

    Attributes:
        folder: where each study writes when it is done; None keeps the reports for whoever writes this one.

    Raises:
        ValueError: no studies, or a name that is no folder's.
    """

    def __init__(self, studies: dict[str, Study]) -> None:
        if not studies:
            raise ValueError("studies is empty: name at least one")
        for name in studies:
            if not name.replace("_", "").isalnum():
                raise ValueError(f"the study {name!r} gives its folder its name: use letters, digits and underscores")
        self.studies = studies
        self.folder: Path | None = None

    @property
    def began(self) -> bool:
        """Whether anything is written that is worth keeping."""
        return self.folder is not None and any(
            (self.folder / name / file).exists() for name in self.studies for file in (_DONE, _LOG)
        )

    def run(self) -> Report:
        """Run them."""
        console = Console(stderr=True)
        parts: dict[str, Report] = {}
        summary: dict[str, float] = {}
        rows: list[list[Cell]] = []
        sections: list[Section] = []
        for number, (name, study) in enumerate(self.studies.items(), start=1):
            known = None if self.folder is None else _read(self.folder / name)
            said = f"study {number} of {len(self.studies)}: {name}{'' if known is None else ', done before'}"
            console.print(said, highlight=False)
            if known is None:
                start = time.monotonic()
                try:
                    report = with_pages(study.run(), study, "../../config.yaml")
                    known = _known(report, time.monotonic() - start)
                    if self.folder is None:
                        parts[name] = report
                    else:
                        _write(report, known, self.folder / name)
                    del report  # what a study drew is not kept in memory beside all others
                except Exception as error:  # whatever it is, the other studies are worth having
                    message = str(error) or type(error).__name__
                    console.print(f"{name} failed: {message}", highlight=False)
                    links = [] if self.folder is None else [_log(self.folder / name)]
                    rows.append([name, "failed", time.monotonic() - start, message])
                    sections.append(Section(name, [f"failed: {type(error).__name__}: {message}"], links=links))
                    continue
            numbers = {key: math.nan if value is None else value for key, value in known["summary"].items()}
            summary |= {f"{name}/{key}": value for key, value in numbers.items()}
            summary[f"studies/{name}/seconds"] = known["seconds"]
            rows.append([name, "done", known["seconds"], ""])
            sections.append(_section(name, study, numbers, known["links"]))
        failed = [row for row in rows if row[1] == "failed"]
        if len(failed) == len(rows):
            raise ValueError("all studies failed: " + "; ".join(f"{row[0]}: {row[3]}" for row in failed))
        summary |= {"studies/count": float(len(rows)), "studies/failed": float(len(failed))}
        table = Table(["study", "outcome", "seconds", "error"], rows)
        text = ["What each study found, with links to its own pages, figures and numbers."]
        return Report(summary, {"studies": table}, pages={"index": report_page("Studies", text, sections)}, parts=parts)


def _known(report: Report, seconds: float) -> dict[str, Any]:
    """What the index page says of a study: its numbers, its time, and (words, path in its folder) of what it wrote."""
    links = [(f"page: {in_words(page)}", f"pages/{page}.html") for page in report.pages]
    links += [(f"site: {in_words(site)}", f"{site}/index.html") for site in report.sites]
    links += [(f"figure: {in_words(figure)}", f"figures/{figure}.png") for figure in report.figures]
    links += [(f"film: {in_words(film)}", f"films/{film}.gif") for film in report.films]
    links += [(f"table: {in_words(table)}", f"tables/{table}.csv") for table in report.tables]
    finite = {name: value if math.isfinite(value) else None for name, value in report.summary.items()}
    return {"summary": finite, "seconds": seconds, "links": [*links, ("numbers", "summary.json")]}


def _write(report: Report, known: dict[str, Any], folder: Path) -> None:
    """Write a study's report, and at last that it is done."""
    write_events(report, folder)
    report.write(folder)
    (folder / _LOG).unlink(missing_ok=True)
    write_atomically(folder / _DONE, lambda partial: partial.write_text(json.dumps(known)))


def _read(folder: Path) -> dict[str, Any] | None:
    """What is known of a study that is done; None of another."""
    path = folder / _DONE
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def _log(folder: Path) -> Link:
    """Write the exception that is being handled, and link it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LOG).write_text(traceback.format_exc())
    return Link("what Python said", f"../{folder.name}/{_LOG}")


def _section(name: str, study: Study, summary: dict[str, float], links: list[tuple[str, str]]) -> Section:
    """A study in short: what it asks and does, where its pages are, its numbers."""
    asked, described = question(study)
    columns, rows = number_rows(summary)
    there = [Link(words, f"../{name}/{path}") for words, path in links]
    heading = f"{in_words(name)}: {asked}" if asked.endswith("?") else in_words(name)
    return Section(heading, [described], (), columns, rows, there, folded=True)
