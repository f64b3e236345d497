"""Figures as a reader gets them."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def cut_off(figure: Figure, slack: float = 2.0) -> list[str]:
    """Texts of a figure of which a part lies outside it, by more than `slack` pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # a layout is found as it is drawn
    renderer = canvas.get_renderer()
    page = figure.bbox.padded(slack)
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1:
                found.append(text.get_text())
    return found
