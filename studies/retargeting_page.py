"""How retargeting is told: the page that a reader understands without the code."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from environments.heist import ENTITIES
from interpretability.report_page import Section, film_links, percent, report_page
from interpretability.statistics import Interval
from studies.report import Table


def retargeting_page(
    agent: str,
    tap: str,
    probe_taps: tuple[Sequence[str], str],
    summary: Mapping[str, float],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    films: Sequence[str],
    kept_seen: bool,
    kept_outside: bool,
) -> str:
    """The page of the study: what was asked, what came of it, and what each arm is.

    Args:
        agent: its name.
        tap: where the edits are, in words.
        probe_taps: where perception and goal are read.
        summary, tables, figures, films: of the report.
        kept_seen: whether edits were searched that leave what such probes read as it is.
        kept_outside: whether edits were searched that change the asked entity alone.
    """
    maps, goal_tap = " and ".join(probe_taps[0]), probe_taps[1]
    text = [
        f"Agent {agent}. In each maze two of the keys and the gem can be fetched at once, in different directions. "
        f"An edit at the tap {tap}, fixed by the name of an entity alone, is to send the agent to that entity first. "
        "It counts only where the unedited agent, with the same noise, touches the other one first; touching nothing "
        "in time is a failure.",
        f"Such mazes do not occur in training. The unedited agent touches something in "
        f"{100 * summary['retarget/touched']:.1f} % of {summary['retarget/levels']:.0f} of them, and finishes "
        f"{100 * summary['retarget/competence']:.1f} %.",
    ]
    text.append(_told(summary))
    explained = [
        "No edit, other noise: how often the agent would have gone there anyway. Random direction: as large a change "
        "at every position, in one random direction. Random units: the same edit with its channels exchanged. Sham "
        "position: its change moved by half the map. Wrong entity: the edit of another entity. Agent of random "
        "weights: the same architecture before any training, in the same mazes. Bounds: the entity "
        "that the unedited agent prefers really lies where the asked one lay, by exchange of places or of colours.",
    ]
    headings = {
        "arms": ("Did it go where it was sent?", explained),
        "edits": (
            "How large are the edits?",
            [
                "Units that an edit changes; its size (units, directions that it mixes, or detectors); the root mean "
                "square over positions of the length of its change across channels; the part of its square that lies "
                "outside the asked entity's cell and half a cell around it, so that 0 is an edit of that entity alone; "
                "and, on natural play of other levels, where nobody asks for anything, how far it changes the policy "
                "(Kullback-Leibler divergence from the unedited one, in nats).",
            ],
        ),
        "levels": (
            "What becomes of the asked entity",
            [
                "The highest activation of a unit in the asked entity's cell, mean over mazes, without and with the "
                "edit: the units whose peak an edit changes most. Compare an entity's level with the edit to the "
                "others' without one.",
            ],
        ),
        "directions": ("By direction", ["Every arm by the first move on the way to where the asked entity lies."]),
        "perception": (
            "Seen or wanted",
            [
                f"Linear probes of what lies in a cell (at {maps}), and of what will be touched next (at {goal_tap}). "
                "An edit of the goal alone leaves the first within 2 points and turns the second to the asked entity; "
                "an edit that changes the first changes what the agent sees.",
                "In untouched play, what an entity is and how much the agent wants it go together, so that a probe "
                "fitted there may read the one for the other. Those that are fitted also on play with the other "
                "entities' edits cannot: what they still read with an edit, the agent still tells apart. Beside the "
                "edit stands a change of the same size at every position, in one random direction.",
                "Not measurable by these probes: what an edit behind a map does to what is read of that, for nothing "
                f"before the edit can change, and what one at {goal_tap} or behind does to the second, for there the "
                "edit itself would be read.",
            ],
        ),
        "preference": ("What the unedited agent does", ["Which of the two it touches first."]),
        "frontier": (
            "Smaller and larger edits",
            [
                "Measured on mazes of training levels that no edit was fitted on, wherever the unedited agent goes. "
                "One works that reaches its entity nearly as often as the best (the part `search.keep`); taken is the "
                "smallest that works at the earliest tap where one does.",
            ],
        ),
    }
    if kept_seen:
        headings["perception"][1].append(
            "The edits were searched to leave what such probes read as it is, so that these say less than they would: "
            "what other probes, or the network itself, see may have changed. Compare a search without "
            "search.keep_seen."
        )
    if kept_outside:
        headings["edits"][1].append(
            "The search paid for every change outside the asked entity's cell, so that an edit raises that entity and "
            "leaves the others as they are. A change of the same size in a random direction then lies there too, for "
            "the most part, and leaves what the agent prefers as it is."
        )
    sections = [
        Section(
            heading, paragraphs, [(heading, figures[name])] if name in figures else [], tables[name].columns,
            tables[name].rows,
        )
        for name, (heading, paragraphs) in headings.items()
        if name in tables
    ]  # fmt: skip
    shown = ["The same mazes without and with the edit."]
    return report_page("Sent after another entity", text, [*sections, Section("Films", shown, films=film_links(films))])


def _told(summary: Mapping[str, float]) -> str:
    """What came of it, in a sentence for each entity."""
    said = []
    for name in ENTITIES:
        key = f"retarget/{name}"
        if f"{key}/success" in summary:
            edited, untouched = (
                percent(Interval(*(summary[f"{key}/{arm}{end}"] for end in ("", "_low", "_high"))))
                for arm in ("success", "none")
            )
            said.append(
                f"Sent after the {name.replace('_', ' ')}, it touches that first in {edited} % of the "
                f"{summary[f'{key}/counted']:.0f} mazes that count; with other noise and no edit, in {untouched} %."
            )
    return " ".join(said)
