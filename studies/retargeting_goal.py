"""Whether each edit of the retargeting study changes what the agent sees, or what it wants."""

from collections.abc import Mapping, Sequence

import numpy as np

from environments import EnvironmentSettings
from environments.heist import ENTITIES, label_states
from interpretability.choices import play_choices, retrace
from interpretability.perception import SEEN, PerceptionProbes, Views
from interpretability.statistics import Interval, grouped_mean
from networks import Edit, Precision, TappedAgent
from studies.report import Cell, Table

_EVERY = 3  # steps from one view of a maze to the next
KEPT = 0.02
"""A goal edit leaves the share of cells that are read rightly within this."""


def choice_views(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    seed: int,
    num_environments: int,
    max_steps: int,
    precision: Precision,
) -> Views:
    """What the unedited agent comes to from each state until it touches something, every third step."""
    played = play_choices(
        agent, states, settings=settings, seed=seed, num_environments=num_environments, max_steps=max_steps,
        precision=precision, progress="views for probes",
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
    fitted: Views,
    tested: Views,
    pairs: Sequence[tuple[str, str]],
    edits: Mapping[str, Edit],
    map_taps: Sequence[str] = ("conv2b", "conv3a"),
    goal_tap: str = "fc1",
) -> tuple[dict[str, Interval], Table]:
    """Shares of cells read rightly and of frames read as after the asked entity, without and with each edit.

    Measured on frames of tested mazes in which the asked entity can be fetched and the unedited agent goes to the
    other. An edit leaves what is read before it as it was, whatever it does, and one at `goal_tap` or behind is not
    read by way of the agent: what cannot be measured is left out, and the table says so.

    Args:
        agent: whose taps are read.
        fitted, tested: views of different mazes.
        pairs: the two entities that can be fetched, of each tested maze.
        edits: by asked entity.
        map_taps: maps, of whose cells is asked what lies there.
        goal_tap: a flat tap, of which is asked what is touched next.
    """
    asked_of = [*(f"seen/{tap}" for tap in map_taps), "pursued"]
    columns = ["entity", "tap", "mazes"]
    for arm in ("unedited", "edited"):
        for what in (*(f"cells read at {tap}" for tap in map_taps), "pursues asked"):
            columns += [f"{what}, {arm}", "low", "high"]
    columns.append("edit of")
    if not (fitted.pursued >= 0).any():  # an agent that touches nothing pursues nothing
        return {}, Table(columns, [])
    probes = PerceptionProbes(agent, fitted, map_taps, goal_tap)
    clean = probes(tested)
    intervals: dict[str, Interval] = {}
    table: list[list[Cell]] = []
    for entity, edit in edits.items():
        asked = SEEN.index(entity)
        offered = np.array([entity in pair for pair in pairs])[tested.maze]  # a gem behind locks is none to go to
        counted = offered & (tested.pursued >= 0) & (tested.pursued != asked)
        if not counted.any():
            continue
        can = [f"seen/{tap}" for tap in readable_maps(agent, edit[0], map_taps)]
        if list(agent.taps).index(edit[0]) < list(agent.taps).index(goal_tap):
            can.append("pursued")
        row: list[Cell] = [entity, edit[0], len(np.unique(tested.maze[counted]))]
        found: dict[str, Interval] = {}
        for end, (right, pursued) in (("_before", clean), ("", probes(tested, [edit]))):
            for tap, (rows, hits) in right.items():
                cells = counted[rows]
                found[f"seen/{tap}{end}"] = grouped_mean(hits[cells], tested.maze[rows[cells]])
            found[f"pursued{end}"] = grouped_mean(pursued[counted] == asked, tested.maze[counted])
            for what in asked_of:
                row += found[f"{what}{end}"] if what in can else ["not measurable", "", ""]
        intervals |= {
            f"retarget/{entity}/{what}{end}": found[f"{what}{end}"] for what in can for end in ("_before", "")
        }
        changed = [abs(found[what].value - found[f"{what}_before"].value) for what in can if what != "pursued"]
        kind = (
            "perception"
            if any(one > KEPT for one in changed)
            else "goal"
            if found["pursued"].value > 0.5
            else "neither"
        )
        table.append([*row, kind if changed and "pursued" in can else "not measurable"])
    return intervals, Table(columns, table)
