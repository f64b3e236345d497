import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import label_states
from environments.heist.asked import anywhere
from interpretability.episodes import first_states
from interpretability.perception import SEEN, PerceptionProbes, Ridge, Views
from networks import CustomCNN
from studies.retargeting_search import choice_mazes

EASY = EnvironmentSettings()


def views(start: int, count: int) -> Views:
    """Mazes with the player anywhere; told to be pursued is the first of the two entities."""
    rng = np.random.default_rng(start)
    mazes = choice_mazes(first_states(range(start, start + count), EASY), 0, (2, 4))
    states = [anywhere(maze, rng).to_bytes() for maze, _ in mazes]
    environment = VectorEnvironment(EASY, count)
    environment.set_states(states)
    frames = environment.observe()[1].copy()
    environment.close()
    pursued = np.array([SEEN.index(pair[0]) for _, pair in mazes])
    return Views(frames, label_states(states), np.arange(count), pursued)


class Constant(nn.Module):
    def forward(self, acts):
        return acts.mean(0, keepdim=True).expand_as(acts)


def test_ridge_is_least_squares_of_one_hot_classes():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator).double()
    classes = (features[:, 0] > 0).long() + (features[:, 1] > 1).long()
    ridge = Ridge(features, classes, 3, penalty=1e-12)
    design = torch.cat([features, torch.ones(60, 1)], 1)
    weight = torch.linalg.lstsq(design, torch.nn.functional.one_hot(classes, 3).double()).solution
    assert torch.equal(ridge(features), (design @ weight).argmax(1))


def test_probes_read_what_lies_there_and_an_edit_that_blinds_them_not():
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    fitted, tested = views(0, 96), views(200, 48)
    probes = PerceptionProbes(agent, fitted, map_tap="conv1a")
    rows, right, pursued = probes(tested)
    lying = (tested.labels.cells[:, [0, 1, 2, 6], 0] >= 0).sum(1)
    assert np.array_equal(np.bincount(rows), lying + 1), "every entity and one empty cell"
    assert right.mean() > 1.5 * 48 / len(rows), "random filters keep colours; the most frequent class is an empty cell"
    assert pursued.shape == (48,)
    _, blind, same = probes(tested, [("conv1a", Constant())])
    assert blind.mean() < right.mean() - 0.1
    assert len(set(same.tolist())) == 1
    with pytest.raises(ValueError, match="must be a map"):
        PerceptionProbes(agent, fitted, map_tap="fc1")
