"""What a study is, and what it hands back."""

import csv
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table as RichTable
from torch import Tensor, nn

from interpretability.films import Film
from interpretability.pictures import save_figure, save_png
from networks import save_weights

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        columns: their headings.
        rows: one cell a column each.
        printed: shown in the terminal; a long one is only written.
    """

    columns: list[str]
    rows: list[list[Cell]]
    printed: bool = True

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a cell a column"

    def records(self) -> list[dict[str, Cell | None]]:
        """A record for each row, by column; None for a number that is not finite.

        Headings that recur (`low`, `high`) are told apart by the last one before them that does not: `return low`.
        """
        names: list[str] = []
        owner = ""
        for heading in self.columns:
            recurs = self.columns.count(heading) > 1
            owner = owner if recurs else heading
            name = f"{owner} {heading}".strip() if recurs else heading
            names.append(name if name not in names else f"{name} {len(names) + 1}")
        return [dict(zip(names, map(_json_cell, row), strict=True)) for row in self.rows]


@dataclass(frozen=True)
class Report:
    """The outcome of a study.

    Attributes:
        summary: metric name -> number; 95 % bounds as `NAME_low` and `NAME_high`.
        tables: by name.
        figures: by name: drawn by matplotlib, or pictures as they are.
        films: by name.
        pages: HTML that stands alone, by name.
        sites: folders of files by name, each a content by path, to be opened at `index.html`.
        weights: modules with the metadata to save them with, by name.
        parts: reports of other studies by name, each in a folder of its own.
    """

    summary: dict[str, float]
    tables: dict[str, Table] = field(default_factory=dict)
    figures: Mapping[str, Figure | UInt8[Tensor, "H W 3"]] = field(default_factory=dict)
    films: dict[str, Film] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    sites: dict[str, dict[str, bytes]] = field(default_factory=dict)
    weights: dict[str, tuple[nn.Module, dict[str, str]]] = field(default_factory=dict)
    parts: "dict[str, Report]" = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write figures, films, pages, weights and tables into folders of these names, each site and part into one of
        its own, and at last `summary.json`. A table is written as CSV and, by records, as JSON.

        A number that is not finite becomes null in JSON.
        """
        for name, part in self.parts.items():
            part.write(folder / name)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in self.figures.items():
            path = folder / "figures" / f"{name}.png"
            if isinstance(figure, Tensor):
                save_png(path, figure)
            else:
                save_figure(path, figure, dpi=120)
        for name, film in self.films.items():
            film.save(folder / "films" / f"{name}.gif")
        for name, page in self.pages.items():
            path = folder / "pages" / f"{name}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8")
        for name, site in self.sites.items():
            for place, content in site.items():
                path = folder / name / place
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        for name, (module, metadata) in self.weights.items():
            save_weights(folder / "weights" / f"{name}.safetensors", module, metadata)
        for name, table in self.tables.items():
            path = folder / "tables" / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([table.columns, *table.rows])
            path.with_suffix(".json").write_text(json.dumps(table.records(), indent=1) + "\n")
        finite = {name: value if math.isfinite(value) else None for name, value in sorted(self.summary.items())}
        temporary = folder / f".summary.json.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(finite, indent=2) + "\n")
        temporary.replace(folder / "summary.json")

    def show(self, console: Console, folder: Path) -> None:
        """Print the tables, and where the rest lies."""
        cut: list[str] = []
        for name, table in self.tables.items():
            if table.printed:
                shown, whole = _shown(table, name.replace("_", " "), console)
                console.print(shown)
                if not whole:
                    cut.append(name)
        lines = [f"page     {folder / 'pages' / name}.html" for name in self.pages]
        lines += [f"page     {folder / name / 'index.html'}" for name in self.sites]
        lines += [f"part     {folder / name}" for name in self.parts]
        lines += [f"film     {folder / 'films' / name}.gif" for name in self.films]
        lines += [f"weights  {folder / 'weights' / name}.safetensors" for name in self.weights]
        lines += [f"table    {folder / 'tables' / name}.csv, with all columns" for name in cut]
        lines += [f"picture  {folder / 'figures' / name}.png" for name in self.figures]
        for line in (*lines, f"numbers  {folder / 'summary.json'}"):
            console.print(line, soft_wrap=True, highlight=False)


def _shown(table: Table, title: str, console: Console) -> tuple[RichTable, bool]:
    """A table as the terminal has room for it, and whether it is whole: as it is, else with a column a row, else its
    first columns alone. There is room for a column where there is for its longest word.
    """
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.rows]
    upright = [table.columns, *cells]
    turned = [list(row) for row in zip(*upright, strict=True)]
    tried = [upright, turned, *([row[:count] for row in upright] for count in range(len(table.columns) - 1, 0, -1))]
    for lines in tried:
        shown = RichTable(title=title, title_justify="left")
        for heading in lines[0]:
            shown.add_column(heading, overflow="fold")
        for line in lines[1:]:
            shown.add_row(*line)
        if console.measure(shown, options=console.options.update_width(10_000)).minimum <= console.width:
            break
    return shown, lines is upright or lines is turned


def _json_cell(cell: Cell) -> Cell | None:
    plain: Cell = cell.item() if isinstance(cell, np.generic) else cell
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


class Study(ABC):
    """A question asked of an agent.

    The constructor's typed arguments are its configuration. It loads and checks what they name, so that a mistake
    stops before any work; `run` does the work.
    """

    @abstractmethod
    def run(self) -> Report:
        """Answer the question."""
