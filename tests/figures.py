"""Figures as a reader gets them."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def cut_off(figure: Figure, slack: float = 2.0) -> list[str]:
    """Texts of a figure, tick labels aside, of which a part lies outside it, by more than `slack` pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # a layout is found as it is drawn
    renderer = canvas.get_renderer()
    page = figure.bbox.padded(slack)
    found = []
    # ticks beyond an axis' limits exist and are not drawn
    ticks = {id(label) for axes in figure.axes for both in (False, True) for label in
             (*axes.get_xticklabels(minor=both), *axes.get_yticklabels(minor=both))}  # fmt: skip
    for text in figure.findobj(Text):
        if id(text) not in ticks and text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1:
                found.append(text.get_text())
    return found
