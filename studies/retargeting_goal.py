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


def perception_and_goal(
    agent: TappedAgent, fitted: Views, tested: Views, edits: Mapping[str, Edit]
) -> tuple[dict[str, Interval], Table]:
    """Shares of cells read rightly and of frames read as after the asked entity, without and with each edit.

    Measured on frames of tested mazes that hold the asked entity and in which the unedited agent goes to the other.
    """
    probes = PerceptionProbes(agent, fitted)
    clean = probes(tested)
    intervals: dict[str, Interval] = {}
    table: list[list[Cell]] = []
    for entity, edit in edits.items():
        asked = SEEN.index(entity)
        there = tested.labels.cells[:, ENTITIES.index(entity), 0] >= 0
        counted = there & (tested.pursued >= 0) & (tested.pursued != asked)
        if not counted.any():
            continue
        row: list[Cell] = [entity, len(np.unique(tested.maze[counted]))]
        values = []
        for name, (rows, right, pursued) in (("_before", clean), ("", probes(tested, [edit]))):
            cells = counted[rows]
            seen = _share(right[cells], tested.maze[rows[cells]])
            flipped = _share(pursued[counted] == asked, tested.maze[counted])
            intervals |= {f"retarget/{entity}/seen{name}": seen, f"retarget/{entity}/pursued{name}": flipped}
            values.append((seen, flipped))
            row += [*seen, *flipped]
        (seen_before, _), (seen, flipped) = values
        sees = abs(seen.value - seen_before.value) > KEPT
        kind = "perception" if sees else "goal" if flipped.value > 0.5 else "neither"
        table.append([*row, kind])
    columns = ["entity", "mazes"]
    for arm in ("unedited", "edited"):
        for what in ("cells read", "pursues asked"):
            columns += [f"{what}, {arm}", "low", "high"]
    return intervals, Table([*columns, "edit of"], table)


def _share(hits: Bool[np.ndarray, " n"], mazes: Int[np.ndarray, " n"]) -> Interval:
    """The share of hits, its bounds over mazes."""
    _, groups = np.unique(mazes, return_inverse=True)
    return paired_bootstrap(ratio_of_means, [np.bincount(groups, weights=hits), np.bincount(groups)])
