"""Whether each edit of the retargeting study changes what the agent sees, or what it wants."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool

from environments import EnvironmentSettings
from environments.heist import ENTITIES, label_states
from interpretability.choices import play_choices, retrace
from interpretability.perception import SEEN, PerceptionProbes, Samples, Views, sample
from interpretability.statistics import Interval, grouped_mean
from networks import Edit, Precision, TappedAgent
from networks.channel_edit import RandomDirection, TapEdit
from studies.report import Cell, Table

_EVERY = 3  # steps from one view of a maze to the next
_EDITED_STEPS: Final = 30  # enough to reach what lies six moves away, and no long standing still
KEPT: Final = 0.02
"""A goal edit leaves the share of cells that are read rightly within this."""
_FITTED_ON: Final = {"": "untouched play", "_across": "other edits' play too"}
_ARMS: Final = {"_before": "no edit", "": "edit", "_random_direction": "random direction"}


def choice_views(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    seed: int,
    num_environments: int,
    max_steps: int,
    precision: Precision,
    edits: Sequence[Edit] = (),
) -> Views:
    """What the agent comes to from each state until it touches something, every third step; with edits for 30 steps."""
    played = play_choices(
        agent, states, settings=settings, edits=edits, seed=seed, num_environments=num_environments,
        max_steps=min(max_steps, _EDITED_STEPS) if edits else max_steps, precision=precision,
        progress="views for probes",
    )  # fmt: skip
    mazes, frames, visited = [], [], []
    for row, step, frame, state in retrace(states, played.actions, settings, num_environments=num_environments):
        if step % _EVERY == 0:
            mazes.append(row)
            frames.append(frame)
            visited.append(state)
    place = {ENTITIES.index(name): number for number, name in enumerate(SEEN)}
    pursued = np.array([place.get(touched, -1) for touched in played.touched.tolist()])
    return Views(np.stack(frames), label_states(visited), np.array(mazes), pursued[mazes])


def check_probe_taps(agent: TappedAgent, map_taps: Sequence[str], goal_tap: str) -> None:
    """Refuse taps that the probes cannot read.

    Raises:
        ValueError: no map of the agent, or no flat tap of its trunk; says which there are.
    """
    if not map_taps:
        raise ValueError("map_taps is empty: name at least one map whose cells are read")
    inside = {name: len(shape) for name, shape in agent.taps.items() if name not in ("logits", "value")}
    wanted = [("map_taps", tap, 3, "map") for tap in map_taps] + [("goal_tap", goal_tap, 1, "flat tap")]
    for argument, tap, axes, kind in wanted:
        if inside.get(tap) != axes:
            there = ", ".join(name for name, number in inside.items() if number == axes)
            raise ValueError(f"{argument} {tap!r} is no {kind} of {agent.architecture}: choose one of {there}")


def readable_maps(agent: TappedAgent, tap: str, map_taps: Sequence[str]) -> list[str]:
    """Those maps in which an edit at a tap can change what is read."""
    order = list(agent.taps)
    return [name for name in map_taps if order.index(tap) <= order.index(name)]


def perception_and_goal(
    agent: TappedAgent,
    fitted: Mapping[str, Views],
    tested: Views,
    pairs: Sequence[tuple[str, str]],
    edits: Mapping[str, tuple[str, TapEdit]],
    map_taps: Sequence[str] = ("conv2b", "conv3a"),
    goal_tap: str = "fc1",
    seed: int = 0,
    entities: Sequence[str] | None = None,
) -> tuple[dict[str, Interval], Table]:
    """Shares of cells read rightly, in all and without the asked entity's (`seen_others`), and of frames read as after
    the asked entity, without and with each edit.

    By probes of two kinds. In untouched play, which entity lies somewhere and how much the agent wants it go together,
    so that a probe fitted there reads either for the other: told apart they are only by probes fitted also on play with
    edits (`_across`), of which the one that is asked about is left out.

    Measured on frames of tested mazes in which the asked entity can be fetched and the unedited agent goes to the
    other; with the edit and, beside it, with a change of the same size at every position in one random direction. An
    edit leaves what is read before it as it was, whatever it does, and one at `goal_tap` or behind is not read by way
    of the agent: what cannot be measured is left out, and the table says so.

    Args:
        agent: whose taps are read.
        fitted: views to fit on: of untouched play by the name "", and of play with each edit by its entity's.
        tested: views of untouched play of other mazes.
        pairs: the two entities that can be fetched, of each tested maze.
        edits: by asked entity.
        map_taps: maps, of whose cells is asked what lies there.
        goal_tap: a flat tap, of which is asked what is touched next.
        seed: of the empty cells that are asked about, and of the random direction.
        entities: whose edits are measured; null for all.
    """
    asked_of = [*(f"{seen}/{tap}" for tap in map_taps for seen in ("seen", "seen_others")), "pursued"]
    columns = ["entity", "tap", "mazes", "probes fitted on", "arm"]
    cells = [text for tap in map_taps for text in (f"cells read at {tap}", f"of those but the asked one's at {tap}")]
    for what in (*cells, "pursues asked"):
        columns += [what, "low", "high"]
    columns.append("edit of")
    if not (fitted[""].pursued >= 0).any():  # an agent that touches nothing pursues nothing
        return {}, Table(columns, [])

    def look(views: Views, *changes: Edit) -> Samples:
        return sample(agent, views, map_taps, goal_tap, changes, seed)

    samples = {name: look(views, *([edits[name]] if name else [])) for name, views in fitted.items()}
    untouched, clean = PerceptionProbes([samples[""]]), look(tested)
    intervals: dict[str, Interval] = {}
    table: list[list[Cell]] = []
    for entity in edits if entities is None else entities:
        (tap, edit), asked = edits[entity], SEEN.index(entity)
        offered = np.array([entity in pair for pair in pairs])[tested.maze]  # a gem behind locks is none to go to
        counted = offered & (tested.pursued >= 0) & (tested.pursued != asked)
        if not counted.any():
            continue
        can = [f"{seen}/{name}" for name in readable_maps(agent, tap, map_taps) for seen in ("seen", "seen_others")]
        if list(agent.taps).index(tap) < list(agent.taps).index(goal_tap):
            can.append("pursued")
        others = [one for name, one in samples.items() if name != entity]
        random = RandomDirection(edit, seed).to(next(agent.parameters()).device)
        arms = {"_before": clean, "": look(tested, (tap, edit)), "_random_direction": look(tested, (tap, random))}
        number = len(np.unique(tested.maze[counted]))
        for kind, probes in (("", untouched), ("_across", PerceptionProbes(others))):
            found = {arm: _shares(probes, read, tested, counted, asked) for arm, read in arms.items()}
            for what in can:
                name = what.replace("seen", f"seen{kind}") if what != "pursued" else f"pursued{kind}"
                intervals |= {f"retarget/{entity}/{name}{arm}": shares[what] for arm, shares in found.items()}
            for arm, shares in found.items():
                row: list[Cell] = [entity, tap, number, _FITTED_ON[kind], _ARMS[arm]]
                for what in asked_of:
                    row += shares[what] if what in can else ["not measurable", "", ""]
                table.append([*row, "" if arm else _edit_of(found["_before"], shares, can)])
    return intervals, Table(columns, table)


def _shares(
    probes: PerceptionProbes, read: Samples, views: Views, counted: Bool[np.ndarray, " N"], asked: int
) -> dict[str, Interval]:
    """`seen/TAP`, `seen_others/TAP` and `pursued`, over the frames that count."""
    found = {"pursued": grouped_mean(probes.pursued(read)[counted] == asked, views.maze[counted])}
    for tap, right in probes.right(read).items():
        rows = read.cells[tap].rows
        cells = counted[rows]
        others = cells & (read.cells[tap].classes != asked)
        for name, chosen in (("seen", cells), ("seen_others", others)):
            found[f"{name}/{tap}"] = grouped_mean(right[chosen], views.maze[rows[chosen]])
    return found


def _edit_of(before: Mapping[str, Interval], edited: Mapping[str, Interval], can: Sequence[str]) -> str:
    """What these probes say that an edit changes."""
    changed = {what: abs(edited[what].value - before[what].value) > KEPT for what in can if what != "pursued"}
    if not changed or "pursued" not in can:
        return "not measurable"
    if any(one for what, one in changed.items() if what.startswith("seen_others")):
        return "perception"
    if any(changed.values()):
        return "perception of the asked entity alone"
    return "goal" if edited["pursued"].value > 0.5 else "neither"
