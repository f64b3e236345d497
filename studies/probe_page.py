"""Tables and page of the probe atlas."""

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from environments.heist import POSITION_TARGETS, ClassTarget, Target
from interpretability.probe_figures import ProbeResult, draw_confusion, draw_heat_map
from interpretability.report_page import Section, report_page
from studies.report import Cell, Table

TRANSFER: Final = "natural to deconfounded"
_EXPLANATIONS: Final = {
    "natural": "Fitted and tested on the agent's own play. Colour, order and what is left to see are one and the same "
    "there, so that a probe may read one by another.",
    "deconfounded": "Fitted and tested on edited states in which colour, order, place and presence are independent.",
    TRANSFER: "Fitted on natural play, tested on deconfounded states: what remains of a probe where its short cuts "
    "are gone.",
}
_HEADLINE: Final = (
    "For each target the tap of lowest loss on validation levels, its score on test levels, that of the pixels (in the "
    "position form: of all pixels at the same position), and the difference, with 95 % intervals; for the difference "
    "levels are drawn for both at once. What counts is the difference on deconfounded data: in natural play the keys "
    "shown as held, and whatever is left to see, may give a target away."
)
_ORACLES: Final = (
    "Where the right answers come from, and what is right by chance: the share of test frames in which the answer "
    "that is most frequent in training is right; of numbers R², which is 0 for their mean."
)
_CONTROL_WORDS: Final = {
    "majority": "the answer most frequent in training",
    "shuffled": "the same probe fitted to shuffled labels",
    "random_agent": "an agent with random weights",
    "pixels_pca": "the 256 leading principal components of the pixels (flat form)",
    "pixels": "the pixels",
}

Results = dict[str, list[ProbeResult]]
"""By data: `natural`, `deconfounded` and `TRANSFER`."""


def scores_table(results: Results) -> Table:
    """Every score with its controls."""
    controls = _controls(results)
    rows: list[list[Cell]] = []
    for data, found in results.items():
        for each in found:
            score = each.scores[each.headline]
            row: list[Cell] = [data, each.form, each.target, each.tap, each.headline, *score]
            row.append("yes" if each.best else "")
            rows.append([*row, *(each.controls[name].value if name in each.controls else "" for name in controls)])
    columns = ["data", "form", "target", "tap", "score", "value", "low", "high", "best tap"]
    return Table([*columns, *(f"control {name}" for name in controls)], rows, printed=False)


def headline_table(results: Results) -> Table:
    """Of each target its best tap on each kind of data, above the pixels."""
    best = [(data, each) for data, found in results.items() for each in found if each.above_pixels is not None]
    places = list(dict.fromkeys((each.form, each.target) for found in results.values() for each in found))
    rows: list[list[Cell]] = []
    for data, each in sorted(best, key=lambda item: places.index((item[1].form, item[1].target))):
        assert each.above_pixels is not None
        row: list[Cell] = [each.form, each.target, data, each.tap, each.headline, *each.scores[each.headline]]
        rows.append([*row, each.controls["pixels"].value, *each.above_pixels])
    columns = ["form", "target", "data", "tap", "score", "value", "low", "high"]
    return Table([*columns, "pixels", "above pixels", "low", "high"], rows, printed=False)


def targets_table(targets: Sequence[Target], results: Results) -> Table:
    """Of each target its answers, its oracle, and what is right by chance on each kind of data."""
    kinds = [data for data in results if data != TRANSFER]
    forms = {each.form for found in results.values() for each in found}

    def chance(target: str, position: bool) -> list[Cell]:
        shares: list[Cell] = []
        for data in kinds:
            known = [each for each in results[data] if each.target == target and each.best]
            known = [each for each in known if (each.form == "position") == position]
            shares.append(known[0].controls["majority"].value if known else "")
        return shares

    rows: list[list[Cell]] = []
    for target in targets if forms - {"position"} else ():
        answers = target.classes if isinstance(target, ClassTarget) else target.columns
        score = "accuracy" if isinstance(target, ClassTarget) else "r2"
        rows.append([target.name, ", ".join(answers), target.oracle, score, *chance(target.name, False)])
    if "position" in forms:
        for name in POSITION_TARGETS:
            oracle = "the position over the middle of its cell (of the player's own place), from the state"
            rows.append([f"{name} (position)", "a position of the map", oracle, "accuracy", *chance(name, True)])
    return Table(["target", "answers", "oracle", "score", *(f"chance, {data}" for data in kinds)], rows, printed=False)


def heat_maps(results: Results) -> dict[str, dict[str, Figure]]:
    """By data and form."""
    figures: dict[str, dict[str, Figure]] = {}
    for data, found in results.items():
        for form in dict.fromkeys(result.form for result in found):
            chosen = [result for result in found if result.form == form]
            figures.setdefault(data, {})[form] = draw_heat_map(chosen, f"{data}, form: {form}")
    return figures


def atlas_page(agent: str, results: Results, figures: dict[str, dict[str, Figure]], tables: dict[str, Table]) -> str:
    """The page: headline and oracles first, then heat maps and confusions by data, then the other tables."""
    sections = [
        Section(heading, [words], (), tables[name].columns, tables[name].rows)
        for name, heading, words in (
            ("headline", "the best tap of each target", _HEADLINE),
            ("targets", "targets and their oracles", _ORACLES),
        )
    ]
    for data, found in results.items():
        shown = [(f"{data} {form}: scores by target and tap", each) for form, each in figures[data].items()]
        shown += [
            (f"confusion of {each.target}", draw_confusion(each, f"{each.target} at {each.tap}, {each.form}"))
            for each in found
            if each.best and each.form == "flat" and each.confusion is not None
        ]
        sections.append(Section(data, [_EXPLANATIONS[data]], shown))
    for name, table in tables.items():
        if name not in ("headline", "targets"):
            sections.append(Section(f"table: {name}", (), (), table.columns, table.rows))
    controls = "; ".join(_CONTROL_WORDS[name] for name in _controls(results))
    text = [
        f"Agent {agent}. A linear probe is fitted to the activations of a tap; what it reads on held-out test "
        "levels is shown with 95 % intervals over levels. A score means little by itself: it counts by how far it "
        f"lies above what the controls read. Controls of this run: {controls}. The best tap is chosen on validation "
        "levels."
    ]
    return report_page("What the agent knows, and where", text, sections)


def _controls(results: Results) -> list[str]:
    return list(dict.fromkeys(name for found in results.values() for each in found for name in each.controls))
