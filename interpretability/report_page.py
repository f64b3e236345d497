"""A page that tells what was measured: text, figures and tables in one HTML file that needs nothing else."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from matplotlib.figure import Figure

from interpretability.statistics import Interval

_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fff, #14161b); --ink: light-dark(#181a20, #e9ebf0);
  --faint: light-dark(#626774, #9aa0ad); --rule: light-dark(#dfe2e8, #343945); }
body { margin: 0 auto; padding: 20px 24px 60px; max-width: 1280px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; }
h2 { font-size: 17px; margin: 32px 0 4px; padding-top: 10px; border-top: 1px solid var(--rule); }
p { max-width: 80ch; } .faint { color: var(--faint); } nav a { margin-right: 14px; }
img { max-width: 100%; background: #fff; border-radius: 6px; margin: 8px 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 12px 3px 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { position: sticky; top: 0; background: var(--paper); }
"""


class Link(NamedTuple):
    """A link to a file, by a path relative to the page."""

    words: str
    path: str


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        heading: above it.
        text: paragraphs.
        figures: below them, each with what it shows in words.
        columns: headings of a table; empty for none.
        rows: its cells.
        links: to other files.
    """

    heading: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[str, Figure]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | int | float]] = field(default_factory=list)
    links: Sequence[Link] = ()


def report_page(title: str, text: Sequence[str], sections: Sequence[Section]) -> str:
    """The page: a title, paragraphs, links to the sections, and the sections."""
    links = " ".join(f'<a href="#part{n}">{html.escape(part.heading)}</a>' for n, part in enumerate(sections))
    body = "".join(_section(number, section) for number, section in enumerate(sections))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1>{_paragraphs(text)}<nav>{links}</nav>{body}</body></html>\n"
    )


def percent(share: Interval) -> str:
    """A share with its interval, in per cent: `50 (34 to 66)`."""
    return f"{100 * share.value:.0f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def _section(number: int, section: Section) -> str:
    parts = [f'<h2 id="part{number}">{html.escape(section.heading)}</h2>', _paragraphs(section.text)]
    if section.links:
        shown = (f'<a href="{html.escape(path, quote=True)}">{html.escape(words)}</a>' for words, path in section.links)
        parts.append(f"<nav>{' '.join(shown)}</nav>")
    for words, figure in section.figures:
        parts.append(f'<img src="{_data_uri(figure)}" alt="{html.escape(words, quote=True)}">')
    if section.columns:
        head = "".join(f"<th>{html.escape(str(name))}</th>" for name in section.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
        parts.append(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>')
    return "".join(parts)


def _paragraphs(text: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>" for line in text)


def _cell(cell: str | float) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else html.escape(str(cell))


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
