import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from interpretability.report_page import Link, Section, film_links, in_words, report_page
from tests.browser import in_browser, needs_browser


class Reader(HTMLParser):
    """Tags that are open, links with their places, cells and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.places: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag not in ("meta", "img"):  # these have no end
            self.open.append(tag)
        if tag == "a":
            self.links.append(str(known["href"]))
        if tag == "img":
            self.images.append(known)
        if "id" in known:
            self.places.append(f"#{known['id']}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_page_holds_everything_and_needs_nothing() -> None:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    sections = [
        Section("scores", ["a < b & c"], [("a line, 'rising'", figure)]),
        Section("table", (), (), ["name", "value"], [["x<y", 0.123456], ["whole", 3]]),
    ]
    page = report_page("What & where", ["first"], sections)
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.links == reader.places == ["#part0", "#part1"]
    assert {"What & where", "a < b & c", "x<y", "0.123", "3"} <= set(reader.texts)
    (image,) = reader.images
    assert str(image["src"]).startswith("data:image/png;base64,iVBOR")
    assert image["alt"] == "a line, 'rising'"
    assert "http" not in page.replace("http-equiv", "")


def texts_of(*sections: Section) -> list[str]:
    reader = Reader()
    reader.feed(report_page("title", (), sections))
    assert reader.open == []
    return reader.texts


def test_bounds_stand_in_brackets_to_digits_that_mean_something() -> None:
    columns = ["arm", "share", "low", "high", "no touch", "difference", "low", "high"]
    rows = [
        ["no_edit", 0.97919, 0.93752, 1.0, 0.25, "", "", ""],
        ["edit", 0.5, 0.41, 0.59, float("nan"), 12.3456, 1.2, 23.4],
    ]
    texts = texts_of(Section("scores", (), (), columns, rows))
    assert [each for each in texts if each in {"arm", "share", "no touch", "difference", "low", "high"}] == [
        "arm", "share", "no touch", "difference",
    ]  # fmt: skip
    assert {"no edit", "0.979 (0.938 to 1.000)", "0.50 (0.41 to 0.59)", "12 (1 to 23)", "0.250", "–"} <= set(texts)
    assert any("95 %" in each for each in texts), "what the brackets hold is said"
    small = texts_of(Section("scores", (), (), ["KL", "low", "high"], [[0.00123, 0.0011, 0.0014], [-1e-9, 0.0, 0.0]]))
    assert {"0.00123 (0.00110 to 0.00140)", "0.00 (0.00 to 0.00)"} <= set(small)
    fractions = texts_of(Section("scores", (), (), ["p"], [[0.5], [0.041666], [0.0001234], [0.0], [1 / 3]]))
    assert {"0.500", "0.042", "0.00012", "0.000", "0.333"} <= set(fractions)
    assert not any("95 %" in each for each in texts_of(Section("scores", (), (), ["a"], [[1234.5]])))


def test_films_are_shown_and_captions_say_more_than_headings() -> None:
    figure = Figure(figsize=(1, 1))
    picture = torch.randint(0, 256, (4, 6, 3), dtype=torch.uint8)
    section = Section("One map", (), [("one_map", figure), ("more", picture)], films=film_links(["gem_first"]))
    folded = Section("more", (), (), ["number"], [["a/b_c"]], [Link("file", "../x.csv")], folded=True)
    reader = Reader()
    reader.feed(report_page("title", (), [section, folded]))
    assert reader.open == []
    assert reader.links == ["#part0", "#part1", "../films/gem_first.gif", "../x.csv"]
    assert [image["src"] for image in reader.images][2] == "../films/gem_first.gif"
    shown = Image.open(io.BytesIO(base64.b64decode(str(reader.images[1]["src"]).split(",")[1])))
    assert torch.equal(torch.from_numpy(np.asarray(shown).copy()), picture), "pixel by pixel"
    assert {"more", "gem first", "1 numbers", "a/b_c"} <= set(reader.texts)
    assert "one_map" not in reader.texts


def test_names_in_words() -> None:
    assert [in_words(name) for name in ("blue_key", "a/b_c", "x_y.safetensors", "gem")] == [
        "blue key", "a/b_c", "x_y.safetensors", "gem",
    ]  # fmt: skip


@needs_browser
def test_a_browser_sorts_tables_and_stays_within_the_window(tmp_path: Path) -> None:
    figure = Figure(figsize=(16, 2))
    rows = [[f"unit {n}", value, value - 0.1, value + 0.1, "x" * 90] for n, value in enumerate([3.0, -1.0, 20.0])]
    rows.append(["unit 10", "", "", "", "path/" * 30])
    columns = ["unit", "share", "low", "high", "a_long_name"]
    text = ["pretrained/" + "a_very_long_name_" * 12]
    (tmp_path / "page.html").write_text(report_page("t", text, [Section("s", (), [("wide", figure)], columns, rows)]))
    acts = """
      const units = () => [...document.querySelectorAll("td:first-child")].map(cell => cell.textContent);
      const [first, second] = document.querySelectorAll("th button");
      second.click(); found.down = units();
      second.click(); found.up = units();
      first.click(); found.names = units();
      found.pictures = [...document.images].every(image => image.naturalWidth > 0);
    """
    for window in ((1366, 768), (500, 900)):
        found = in_browser(tmp_path / "page.html", acts, window)
        assert found["said"] == []
        assert found["wide"] <= 0
        assert found["pictures"]
        assert found["down"] == ["unit 2", "unit 0", "unit 1", "unit 10"], "what is not known comes last"
        assert found["up"] == ["unit 1", "unit 0", "unit 2", "unit 10"]
        assert found["names"] == ["unit 10", "unit 2", "unit 1", "unit 0"]
