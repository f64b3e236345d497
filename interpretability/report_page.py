"""A page that tells what was measured: text, figures and tables in one HTML file that needs nothing else."""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import NamedTuple

from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from interpretability.statistics import Interval, bracketed, meaningful_digits

_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#fff, #14161b); --ink: light-dark(#181a20, #e9ebf0);
  --faint: light-dark(#626774, #9aa0ad); --rule: light-dark(#dfe2e8, #343945); --mark: light-dark(#2563c9, #76a9fa); }
body { margin: 0 auto; padding: 4px 24px 60px; max-width: 1280px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 22px; margin: 14px 0 8px; }
h2 { font-size: 17px; margin: 28px 0 4px; padding-top: 10px; border-top: 1px solid var(--rule); }
p { max-width: 90ch; margin: 8px 0; } .faint, figcaption { color: var(--faint); font-size: 13.5px; }
a { color: var(--mark); } nav a { margin-right: 14px; } figure { margin: 10px 0; }
img { max-width: 100%; background: #fff; border-radius: 6px; display: block; }
.films { display: flex; flex-wrap: wrap; gap: 14px; } .films figure { max-width: 100%; margin: 4px 0; }
.wide { overflow: auto; max-height: 66vh; width: fit-content; max-width: 100%; overflow-wrap: normal; }
table { border-collapse: separate; border-spacing: 0; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; text-align: left; border-bottom: 1px solid var(--rule); max-width: 44ch; }
.n { white-space: nowrap; }
th { position: sticky; top: 0; background: var(--paper); vertical-align: bottom; }
th.n { max-width: 18ch; white-space: normal; } .n { text-align: right; }
th button { all: unset; cursor: pointer; } th button:hover { color: var(--mark); }
th button:focus-visible { outline: 2px solid var(--mark); } th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
"""
_SORT = """
for (const table of document.querySelectorAll("table")) table.querySelectorAll("th").forEach((head, place) => {
  head.querySelector("button").onclick = () => {
    const down = head.ariaSort !== "descending", body = table.tBodies[0], key = row => row.cells[place].textContent;
    const sign = down ? -1 : 1, last = row => key(row) === "" || key(row) === "–";
    const order = (a, b) => last(a) - last(b) || sign * ((parseFloat(key(a)) - parseFloat(key(b))) ||
      key(a).localeCompare(key(b), "en", { numeric: true }));
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort(order));
  };
});
"""
_BRACKETS = "Brackets hold 95 % intervals."
_SORTED = "A click on a heading of a table sorts it."


Picture = Figure | UInt8[Tensor, "H W 3"]


class Link(NamedTuple):
    """A link to a file, by a path relative to the page."""

    words: str
    path: str


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        heading: above it.
        text: paragraphs; what stands between backticks is code.
        figures: below them, drawn or pixel by pixel, each with what it shows in words, its caption where that is not
            the heading.
        columns: headings of a table; empty for none.
        rows: its cells.
        links: to other files.
        films: shown where they lie.
        folded: whether the table is folded away.
    """

    heading: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[str, Picture]] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | int | float]] = field(default_factory=list)
    links: Sequence[Link] = ()
    films: Sequence[Link] = ()
    folded: bool = False


def report_page(title: str, text: Sequence[str], sections: Sequence[Section]) -> str:
    """The page: a title, paragraphs, links to the sections, and the sections.

    Columns `low` and `high` are shown in brackets behind the number before them. A click on a heading sorts a table.
    """
    links = " ".join(f'<a href="#part{n}">{html.escape(part.heading)}</a>' for n, part in enumerate(sections))
    body = "".join(_section(number, section) for number, section in enumerate(sections))
    notes = [_BRACKETS] if re.search(r"\(-?[\d.]+ to -?[\d.]+\)", "".join(text) + body) else []
    notes += [_SORTED] if "<table>" in body else []
    note = f'<p class="faint">{" ".join(notes)}</p>' if notes else ""
    nav = f"<nav>{links}</nav>" if len(sections) > 1 else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1>{_paragraphs(text)}{note}{nav}{body}<script>{_SORT}</script></body></html>\n"
    )


def percent(share: Interval) -> str:
    """A share with its interval, in per cent: `50 (34 to 66)`."""
    return f"{100 * share.value:.0f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def link_list(links: Sequence[Link]) -> str:
    """Links in a row, as HTML."""
    shown = (f'<a href="{html.escape(path, quote=True)}">{html.escape(words)}</a>' for words, path in links)
    return f"<nav>{' '.join(shown)}</nav>"


def film_links(names: Iterable[str]) -> list[Link]:
    """Links to a report's films from one of its pages."""
    return [Link(in_words(name), f"../films/{name}.gif") for name in names]


def in_words(name: str) -> str:
    """A name in lower case with its underscores as spaces; anything else as it is."""
    return name.replace("_", " ") if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", name) else name


def _section(number: int, section: Section) -> str:
    parts = [f'<h2 id="part{number}">{html.escape(section.heading)}</h2>', _paragraphs(section.text)]
    if section.links:
        parts.append(link_list(section.links))
    for words, figure in section.figures:
        said = in_words(words).lower() == section.heading.lower()
        caption = "" if said else f"<figcaption>{html.escape(words)}</figcaption>"
        image = f'<img src="{_data_uri(figure)}" alt="{html.escape(words, quote=True)}">'
        parts.append(f"<figure>{image}{caption}</figure>")
    if section.films:
        parts.append(f'<div class="films">{"".join(map(_film, section.films))}</div>')
    if section.columns:
        table = _table(section.columns, section.rows)
        folded = f"<details><summary>{len(section.rows)} {html.escape(section.columns[0])}s</summary>{table}</details>"
        parts.append(folded if section.folded else table)
    return "".join(parts)


def _film(film: Link) -> str:
    words, path = html.escape(film.words, quote=True), html.escape(film.path, quote=True)
    image = f'<a href="{path}"><img loading="lazy" src="{path}" alt="film: {words}"></a>'
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def _paragraphs(text: Sequence[str]) -> str:
    escaped = (re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(line)) for line in text)
    return "".join(f"<p>{line}</p>" for line in escaped)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """The table, `low` and `high` in brackets behind what they bound, columns of numbers to the right."""
    bounded = [place for place in range(len(columns)) if list(columns[place + 1 : place + 3]) == ["low", "high"]]
    kept = [place for place in range(len(columns)) if place - 1 not in bounded and place - 2 not in bounded]
    shown = [
        _bounded([row[at : at + 3] for row in rows]) if at in bounded else _plain([row[at] for row in rows])
        for at in kept
    ]
    cells = list(zip(*shown, strict=True))
    numbers = [all(re.match(r"[-+\d–]|$", str(cell)) for cell in column) for column in shown]
    sides = [' class="n"' if each else "" for each in numbers]
    heads = (f"<th{side}><button>{html.escape(in_words(columns[at]))}</button></th>"
             for at, side in zip(kept, sides, strict=True))  # fmt: skip
    lines = ("".join(f"<td{side}>{cell}</td>" for side, cell in zip(sides, row, strict=True)) for row in cells)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table></div>'


def _bounded(column: Sequence[Sequence[str | int | float]]) -> list[str]:
    """Numbers and their bounds, to the digits that mean something in most rows."""
    known = [all(isinstance(one, int | float) and math.isfinite(one) for one in cells) for cells in column]
    bounds = [(float(cells[1]), float(cells[2])) for cells, each in zip(column, known, strict=True) if each]
    digits = median_low([meaningful_digits(low, high) for low, high in bounds] or [2])
    return [
        bracketed(float(cells[0]), float(cells[1]), float(cells[2]), digits) if each else _cell(cells[0])
        for cells, each in zip(column, known, strict=True)
    ]


def _plain(column: Sequence[str | int | float]) -> list[str]:
    """Cells as text, fractions to as many decimals (three where the largest is near 1), small ones to two digits."""
    most = max((abs(cell) for cell in column if isinstance(cell, float) and math.isfinite(cell)), default=0.0)
    scale = math.floor(math.log10(most)) if most > 0 else 3
    digits = max(0, 3 - scale if scale >= 0 else 2 - scale)
    return [_cell(cell, digits) for cell in column]


def _cell(cell: str | float, digits: int = 2) -> str:
    if not isinstance(cell, float):
        return html.escape(in_words(str(cell)))
    if not math.isfinite(cell):
        return "–"
    return f"{cell:.{digits}f}" if cell == 0 or abs(cell) >= 10 ** (1 - digits) else f"{cell:.2g}"


def _data_uri(figure: Picture) -> str:
    buffer = io.BytesIO()
    if isinstance(figure, Tensor):
        Image.fromarray(figure.numpy()).save(buffer, "png", optimize=True)
    else:
        figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
