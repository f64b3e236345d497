"""Whether each edit of the retargeting study changes what the agent sees, or what it wants."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from environments import EnvironmentSettings
from environments.heist import ENTITIES, label_states
from interpretability.choices import play_choices, retrace
from interpretability.perception import SEEN, PerceptionProbes, Views
from interpretability.statistics import Interval, paired_bootstrap, ratio_of_means
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


def check_probe_taps(agent: TappedAgent, map_tap: str, goal_tap: str) -> None:
    """Refuse taps that the probes cannot read.

    Raises:
        ValueError: no map of the agent, or no flat tap of its trunk; says which there are.
    """
    inside = {name: len(shape) for name, shape in agent.taps.items() if name not in ("logits", "value")}
    for argument, tap, axes, kind in (("map_tap", map_tap, 3, "map"), ("goal_tap", goal_tap, 1, "flat tap")):
        if inside.get(tap) != axes:
            there = ", ".join(name for name, number in inside.items() if number == axes)
            raise ValueError(f"{argument} {tap!r} is no {kind} of {agent.architecture}: choose one of {there}")


def measurable(agent: TappedAgent, tap: str, map_tap: str, goal_tap: str) -> tuple[bool, bool]:
    """Whether an edit at a tap can change what is read at `map_tap`, and is not itself what is read at `goal_tap`."""
    order = list(agent.taps)
    return order.index(tap) <= order.index(map_tap), order.index(tap) < order.index(goal_tap)


def perception_and_goal(
    agent: TappedAgent,
    fitted: Views,
    tested: Views,
    edits: Mapping[str, Edit],
    map_tap: str = "conv3a",
    goal_tap: str = "fc1",
) -> tuple[dict[str, Interval], Table]:
    """Shares of cells read rightly and of frames read as after the asked entity, without and with each edit.

    Measured on frames of tested mazes that hold the asked entity and in which the unedited agent goes to the other.
    An edit behind `map_tap` leaves what is read there as it was, whatever it does, and one at `goal_tap` or behind is
    not read by way of the agent: what cannot be measured is left out, and the table says so.

    Args:
        agent: whose taps are read.
        fitted, tested: views of different mazes.
        edits: by asked entity.
        map_tap: a map, of whose cells is asked what lies there.
        goal_tap: a flat tap, of which is asked what is touched next.
    """
    columns = ["entity", "tap", "mazes"]
    for arm in ("unedited", "edited"):
        for what in ("cells read", "pursues asked"):
            columns += [f"{what}, {arm}", "low", "high"]
    columns.append("edit of")
    if not (fitted.pursued >= 0).any():  # an agent that touches nothing pursues nothing
        return {}, Table(columns, [])
    probes = PerceptionProbes(agent, fitted, map_tap, goal_tap)
    clean = probes(tested)
    intervals: dict[str, Interval] = {}
    table: list[list[Cell]] = []
    for entity, edit in edits.items():
        asked = SEEN.index(entity)
        there = tested.labels.cells[:, ENTITIES.index(entity), 0] >= 0
        counted = there & (tested.pursued >= 0) & (tested.pursued != asked)
        if not counted.any():
            continue
        reads = dict(zip(("seen", "pursued"), measurable(agent, edit[0], map_tap, goal_tap), strict=True))
        row: list[Cell] = [entity, edit[0], len(np.unique(tested.maze[counted]))]
        found: dict[str, Interval] = {}
        for end, (rows, right, pursued) in (("_before", clean), ("", probes(tested, [edit]))):
            cells = counted[rows]
            found[f"seen{end}"] = _share(right[cells], tested.maze[rows[cells]])
            found[f"pursued{end}"] = _share(pursued[counted] == asked, tested.maze[counted])
            for what, can in reads.items():
                row += found[f"{what}{end}"] if can else ["not measurable", "", ""]
        intervals |= {f"retarget/{entity}/{name}": one for name, one in found.items() if reads[name.split("_")[0]]}
        sees = reads["seen"] and abs(found["seen"].value - found["seen_before"].value) > KEPT
        kind = "perception" if sees else "goal" if found["pursued"].value > 0.5 else "neither"
        table.append([*row, kind if all(reads.values()) else "not measurable"])
    return intervals, Table(columns, table)


def _share(hits: Bool[np.ndarray, " n"], mazes: Int[np.ndarray, " n"]) -> Interval:
    """The share of hits, its bounds over mazes."""
    _, groups = np.unique(mazes, return_inverse=True)
    return paired_bootstrap(ratio_of_means, [np.bincount(groups, weights=hits), np.bincount(groups)])
