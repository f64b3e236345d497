"""How policy fields are shown: panels of arrows over mazes, and the page."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from interpretability.policy_field import PolicyField, draw_field
from interpretability.report_page import Section, film_links, report_page
from studies.report import Table

_COLUMNS = 3


def draw_fields(fields: Sequence[Sequence[PolicyField]], titles: Sequence[str]) -> Figure:
    """A panel a maze; with an edit a row of three a maze: before, after, and the difference."""
    edited = len(fields[0]) > 1
    columns = 3 if edited else min(_COLUMNS, len(fields))
    rows = len(fields) if edited else -(-len(fields) // columns)
    figure = Figure(figsize=(4.2 * columns, 4.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for index, (each, title) in enumerate(zip(fields, titles, strict=True)):
        if edited:
            clean, changed = each
            draw_field(panels[index, 0], clean, clean.moves, title)
            draw_field(panels[index, 1], changed, changed.moves, f"{title}, edited")
            draw_field(panels[index, 2], clean, changed.moves - clean.moves, "what the edit changes", "#7c3aed")
        else:
            draw_field(panels[index // columns, index % columns], each[0], each[0].moves, title)
    return figure


def vector_field_page(
    agent: str,
    summary: Mapping[str, float],
    figures: Mapping[str, Figure],
    keys: Table,
    films: Sequence[str],
    edited: bool,
) -> str:
    """The page of the study.

    Args:
        agent: its path.
        summary, figures: of the report.
        keys: what was fetched in mazes with keys and locks.
        films: names.
        edited: whether there is an edit beside the agent as it is.
    """

    def share(name: str) -> str:
        return f"{summary[name]:.2f} ({summary[f'{name}_low']:.2f} to {summary[f'{name}_high']:.2f})"

    text = [
        f"Agent {agent}. At every free cell of a maze an arrow shows the agent's expected move with the player put "
        "there, at rest: a whole cell long where it is sure. Its mean cosine with the shortest solution's move is "
        f"{share('field/alignment')}.",
    ]
    if edited:
        text.append(
            f"With the edit that cosine is {share('field/edited_alignment')}, and a move changes by "
            f"{share('field/change')} cells on average: left the agent as it is, then edited, then the difference."
        )
    fetched = [
        "Mazes with more keys than locks: a key without a lock opens nothing, and the shortest solution leaves it. Of "
        "the keys that open nothing (useless) and of the others (useful) the share that is fetched, and the share of "
        "mazes in which the gem is reached, beside an agent with random weights. An agent that wanted nothing but the "
        "gem would fetch no useless key but on its way; one that wants keys fetches them all.",
    ]
    drawn = [("keys and locks", figures["keys_and_locks"])] if "keys_and_locks" in figures else []
    sections = [
        Section("Where it would go", figures=[("fields of natural levels", figures["fields"])]),
        Section("Keys that open nothing", fetched, drawn, keys.columns, keys.rows),
    ]
    if films:
        words = ["The mazes drawn above, played until nothing more is fetched."]
        sections.append(Section("Films", words, films=film_links(films)))
    return report_page("Where the agent would go from everywhere", text, sections)
