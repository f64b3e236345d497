from html.parser import HTMLParser

from matplotlib.figure import Figure

from interpretability.report_page import Section, report_page


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
        if tag not in ("meta", "img"):
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
    assert {"What & where", "a < b & c", "x<y", "0.1235", "3"} <= set(reader.texts)
    (image,) = reader.images
    assert str(image["src"]).startswith("data:image/png;base64,iVBOR")
    assert image["alt"] == "a line, 'rising'"
    assert "http" not in page.replace("http-equiv", "")
