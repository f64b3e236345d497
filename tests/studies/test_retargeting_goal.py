import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings
from environments.heist import ENTITIES, Labels, positions
from interpretability.episodes import first_states
from interpretability.perception import SEEN
from networks import ChannelEdit, CustomCNN
from studies.retargeting_goal import choice_views, perception_and_goal
from studies.retargeting_search import choice_mazes


@pytest.fixture
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


def test_probes_say_what_they_cannot_measure(agent: CustomCNN) -> None:
    bases = first_states(range(24), EnvironmentSettings())
    mazes = choice_mazes(bases, 0, (1, 1))
    states, pairs = [maze.to_bytes() for maze, _ in mazes], [pair for _, pair in mazes]
    views = choice_views(
        agent, states, settings=EnvironmentSettings(), seed=0, num_environments=24, max_steps=12, precision="fp32"
    )
    edits = {"blue_key": ("conv3a", ChannelEdit(32)), "green_key": ("pool3", ChannelEdit(32)),
             "red_key": ("fc1", ChannelEdit(256))}  # fmt: skip
    fitted = {"": views} | dict.fromkeys(edits, views)
    intervals, table = perception_and_goal(agent, fitted, views, pairs, edits)
    measured = {name.removeprefix("retarget/") for name in intervals if not name.endswith(("before", "direction"))}
    assert measured == {
        f"{entity}/{probe}"
        for kind in ("", "_across")
        for entity, probe in (
            ("blue_key", f"seen{kind}/conv3a"), ("blue_key", f"seen{kind}_others/conv3a"),
            ("blue_key", f"pursued{kind}"), ("green_key", f"pursued{kind}"),
        )
    }  # fmt: skip
    kinds = [row[-1] for row in table.rows]
    assert kinds == 2 * ["", "neither", ""] + 4 * ["", "not measurable", ""]
    assert [row[:-1].count("not measurable") for row in table.rows] == 6 * [2] + 6 * [4] + 6 * [5]
    intervals, _ = perception_and_goal(agent, fitted, views, pairs, edits, ["pool3"], "fc2")
    assert "retarget/green_key/seen/pool3" in intervals
    assert "retarget/red_key/pursued" in intervals
    nothing = dataclasses.replace(views, pursued=np.full(len(views.pursued), -1))
    untouched = perception_and_goal(agent, fitted | {"": nothing}, views, pairs, edits)
    assert untouched[1].rows == [], "nobody pursues anything"


class Smeared(nn.Module):
    """Nothing can be told any more within so many positions of an entity's middle."""

    def __init__(self, places: np.ndarray, reach: int) -> None:
        super().__init__()
        grid = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), -1)
        middles = np.stack([places // 32, places % 32], 1)
        near = np.abs(grid[None] - middles[:, None, None]).max(-1) <= reach
        self.near = torch.from_numpy(near)[:, None]

    num_units = 32

    def change(self, acts: torch.Tensor) -> torch.Tensor:
        return torch.where(self.near[: len(acts)], -acts, 0)

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return acts + self.change(acts)


def test_what_is_seen_of_other_entities_is_told_apart(agent: CustomCNN) -> None:
    """A planted edit that blanks the asked entity's cell: all others are read as before."""
    mazes = choice_mazes(first_states(range(48), EnvironmentSettings()), 0, (2, 4), "red_key")
    views = choice_views(
        agent, [maze.to_bytes() for maze, _ in mazes], settings=EnvironmentSettings(), seed=0, num_environments=48,
        max_steps=1, precision="fp32",
    )  # fmt: skip
    views = dataclasses.replace(views, pursued=np.full(len(views.maze), SEEN.index("gem")))
    columns = {name: getattr(views.labels, name) for name in Labels.__slots__}
    places = positions(columns, 32, 32)[:, ENTITIES.index("red_key")]
    edits: Any = {"red_key": ("conv2b", Smeared(places, 2))}
    intervals, table = perception_and_goal(
        agent, {"": views, "red_key": views}, views, [pair for _, pair in mazes], edits, ("conv2b",)
    )
    found = {name.removeprefix("retarget/red_key/"): interval.value for name, interval in intervals.items()}
    assert found["seen_others/conv2b"] == found["seen_others/conv2b_before"]
    assert found["seen/conv2b"] < found["seen/conv2b_before"] - 0.1
    assert table.rows[1][-1] == "perception of the asked entity alone"


def test_probes_ask_only_of_mazes_in_which_the_entity_can_be_fetched(agent: CustomCNN) -> None:
    mazes = choice_mazes(first_states(range(24), EnvironmentSettings()), 0, (1, 1))
    views = choice_views(
        agent, [maze.to_bytes() for maze, _ in mazes], settings=EnvironmentSettings(), seed=0, num_environments=24,
        max_steps=1, precision="fp32",
    )  # fmt: skip
    views = dataclasses.replace(views, pursued=np.zeros(len(views.maze), int))  # the blue key, everywhere
    assert (views.labels.cells[:, ENTITIES.index("gem"), 0] >= 0).all(), "every maze has a gem, most behind locks"
    edits = {"gem": ("conv3a", ChannelEdit(32)), "blue_key": ("conv3a", ChannelEdit(32))}
    fitted = {"": views} | dict.fromkeys(edits, views)
    _, table = perception_and_goal(agent, fitted, views, [pair for _, pair in mazes], edits)
    assert [row[:3] for row in table.rows] == 6 * [["gem", "conv3a", sum("gem" in pair for _, pair in mazes)]]
