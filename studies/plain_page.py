"""What every study's pages have in common: one for a study that makes none itself, and where all it wrote lies."""

import math
import sys
from dataclasses import replace
from html import escape
from typing import Final

from interpretability.report_page import Link, Section, film_links, in_words, link_list, report_page
from networks import TappedNetwork
from networks.origin import how_trained
from studies.report import Cell, Report, Study, Table

_ROWS: Final = 200


def with_pages(report: Report, study: Study, config: str) -> Report:
    """The report with a page, if the study made none, and below every page how the agents came about and links to its
    numbers and tables.

    Args:
        report: of the study.
        study: its module's docstring is the question that the page puts, its own tells what was done.
        config: path of the configuration from a folder in the report's.
    """
    pages = report.pages
    if not (pages or report.sites or report.parts):
        pages = {"index": _plain_page(report, study)}
    links = [Link("all numbers", "../summary.json"), Link("settings", config)]
    links += [Link(f"table: {in_words(name)}", f"../tables/{name}.csv") for name in report.tables]
    agents = "".join(f"<p>{escape(line)}</p>" for line in agents_of(study))
    foot = f'<footer style="margin-top: 30px">{agents}{link_list(links)}</footer></body>'
    return replace(report, pages={name: page.replace("</body>", foot) for name, page in pages.items()})


def agents_of(study: Study) -> list[str]:
    """What each agent of a study is and how it was trained, without repetition: agents trained by PPO from scratch and
    from a clone may think differently.
    """
    found = [getattr(study, "agent", None), *getattr(study, "agents", [])]
    lines = [
        f"Agent: {agent.architecture}; training: {how_trained(agent.metadata)}."
        for agent in found
        if isinstance(agent, TappedNetwork)
    ]
    return list(dict.fromkeys(lines))


def number_rows(summary: dict[str, float]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of a summary, each number with its bounds."""
    names = [name for name in summary if not name.endswith(("_low", "_high"))]
    ends = ("", "_low", "_high")
    return ["number", "value", "low", "high"], [
        [name, *(summary.get(f"{name}{end}", math.nan) for end in ends)] for name in names
    ]


def question(study: Study) -> tuple[str, str]:
    """The first sentence of the docstring of a study's module, and the first paragraph of its own."""
    asked = (sys.modules[type(study).__module__].__doc__ or type(study).__name__).strip().split("\n")[0]
    head, mark, _ = asked.partition("?")
    first = " ".join((type(study).__doc__ or "").strip().split("\n\n")[0].split())
    return head + mark, first


def _plain_page(report: Report, study: Study) -> str:
    """Figures and printed tables by name, films and numbers of a report, with what the study's docstring tells."""
    title, _ = question(study)
    about = [" ".join(part.split()) for part in (type(study).__doc__ or "").split("\n\n")]
    about = [part for part in about if part and not part.startswith(("Args:", "Attributes:", "Raises:"))]
    told = [part.removeprefix("Summary: ") for part in about if part.startswith("Summary")]
    tables = {name: table for name, table in report.tables.items() if table.printed}
    sections = []
    for name in dict.fromkeys([*report.figures, *tables]):
        figures = [(name, report.figures[name])] if name in report.figures else []
        table = tables.get(name, Table([], []))
        sections.append(Section(in_words(name).capitalize(), (), figures, table.columns, table.rows[:_ROWS]))
    if report.films:
        sections.append(Section("Films", films=film_links(report.films)))
    sections.append(Section("Numbers", told, (), *number_rows(report.summary)))
    return report_page(title, [part for part in about if not part.startswith("Summary")], sections)
