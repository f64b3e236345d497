"""Several studies, one after another, with one page that leads to all of them."""

import math
import time

from rich.console import Console

from interpretability.report_page import Link, Section, report_page
from studies.report import Cell, Report, Study, Table


class StudyList(Study):
    """Runs studies in order and links what they wrote from one page.

    Each study writes into a folder of its name; `pages/index.html` leads to pages, figures and numbers of all. One that
    fails is reported there and does not stop the others. Summary: all numbers of each study behind its name and a
    slash, `studies/count`, `studies/failed`, and `studies/NAME/seconds`.

    Args:
        studies: by name.

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

    def run(self) -> Report:
        """Run them."""
        parts: dict[str, Report] = {}
        summary: dict[str, float] = {}
        rows: list[list[Cell]] = []
        sections: list[Section] = []
        for number, (name, study) in enumerate(self.studies.items(), start=1):
            Console(stderr=True).print(f"study {number} of {len(self.studies)}: {name}", highlight=False)
            start = time.monotonic()
            try:
                report = study.run()
            except (ValueError, OSError, RuntimeError) as error:
                rows.append([name, "failed", time.monotonic() - start, str(error)])
                sections.append(Section(name, [f"failed: {error}"]))
                continue
            seconds = time.monotonic() - start
            parts[name] = report
            summary |= {f"{name}/{key}": value for key, value in report.summary.items()}
            summary[f"studies/{name}/seconds"] = seconds
            rows.append([name, "done", seconds, ""])
            sections.append(_section(name, type(study).__doc__ or "", report))
        if not parts:
            raise ValueError("all studies failed: " + "; ".join(f"{row[0]}: {row[3]}" for row in rows))
        summary |= {"studies/count": float(len(rows)), "studies/failed": float(len(rows) - len(parts))}
        table = Table(["study", "outcome", "seconds", "error"], rows)
        text = ["What each study found, with links to its own pages, figures and numbers."]
        return Report(summary, {"studies": table}, pages={"index": report_page("Studies", text, sections)}, parts=parts)


def _section(name: str, described: str, report: Report) -> Section:
    """A study in short: what it does, where its pages are, its headline numbers."""
    links = [Link(f"page: {page}", f"../{name}/pages/{page}.html") for page in report.pages]
    links += [Link(f"site: {site}", f"../{name}/{site}/index.html") for site in report.sites]
    links += [Link(f"figure: {figure}", f"../{name}/figures/{figure}.png") for figure in report.figures]
    links += [Link(f"film: {film}", f"../{name}/films/{film}.gif") for film in report.films]
    links += [Link(f"table: {table}", f"../{name}/tables/{table}.csv") for table in report.tables]
    links.append(Link("numbers", f"../{name}/summary.json"))
    means = [key for key in report.summary if not key.endswith(("_low", "_high"))]
    rows: list[list[Cell]] = []
    for key in means:
        value, low, high = (report.summary.get(f"{key}{end}", math.nan) for end in ("", "_low", "_high"))
        rows.append([key, value, "" if math.isnan(low) else f"{low:.4g} to {high:.4g}"])
    first = " ".join(described.strip().split("\n\n")[0].split())
    return Section(name, [first], (), ["number", "value", "95 % interval"], rows[:_SHOWN], links)


_SHOWN = 40
