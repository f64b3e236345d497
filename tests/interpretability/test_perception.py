import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import ENTITIES, Labels, label_states, positions
from environments.heist.asked import anywhere
from interpretability.episodes import first_states
from interpretability.perception import (
    SEEN,
    CellReader,
    CellSamples,
    PerceptionProbes,
    Ridge,
    Samples,
    Views,
    _cells,
    neighbourhoods,
    sample,
)
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


@pytest.mark.parametrize("kinds", [2, 4])
def test_a_reader_is_a_convolution_of_logistic_regression_on_neighbourhoods(kinds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(40, 3, 5, 6, generator=generator)
    rows, places = (np.random.default_rng(seed).integers(0, most, 200) for seed, most in ((0, 40), (1, 30)))
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1)).numpy()
    around = np.stack(
        [
            padded[row, :, place // 6 : place // 6 + 3, place % 6 : place % 6 + 3].ravel()
            for row, place in zip(rows, places, strict=True)
        ]
    )
    classes = np.digitize(around[:, 4] + around[:, 13], [-0.5, 0.0, 0.5][: kinds - 1])  # of the middles of two channels
    classes[classes == kinds - 1] = kinds  # a class between them is never there
    assert np.array_equal(neighbourhoods(maps, rows, places).numpy(), around)
    reader = CellReader(torch.from_numpy(around), classes, kinds + 1)
    deviations = (around - around.mean(0)) / around.std(0, ddof=1)
    peer = LogisticRegression(C=0.1, max_iter=500).fit(deviations, classes)
    scores = reader(maps).flatten(2)[rows, :, places]
    assert scores.shape == (200, kinds + 1)
    found = scores.softmax(1).numpy()
    assert np.abs(found[:, peer.classes_] - peer.predict_proba(deviations)).max() < 1e-3
    assert found[:, kinds - 1].max() == 0
    assert np.array_equal(reader.read(torch.from_numpy(around)), scores.argmax(1).numpy())


def test_empty_cells_of_a_fine_map_are_clear_of_entities():
    asked = views(0, 32)
    where = positions({name: getattr(asked.labels, name) for name in Labels.__slots__}, 64, 64)
    drawn = [_cells(CustomCNN(), asked, "conv1a", seed) for seed in range(8)]
    rows, places, classes = (np.concatenate(columns) for columns in zip(*drawn, strict=True))
    empty = classes == len(SEEN)
    assert np.array_equal(rows[empty], np.tile(np.arange(32), 8)), "one of each frame"
    for row, place in zip(rows[empty], places[empty], strict=True):
        half = 64 / asked.labels.world_dim[row] / 2
        others = np.delete(where[row], ENTITIES.index("player"))  # it stands anywhere in its cell
        for middle in others[others >= 0]:
            apart = max(abs(middle // 64 - place // 64), abs(middle % 64 - place % 64))
            assert apart > half - 1, "rounded to whole positions"


def test_probes_read_what_lies_there_and_an_edit_that_blinds_them_not():
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    fitted, tested = views(0, 96), views(200, 48)
    probes = PerceptionProbes([sample(agent, fitted, ["conv1a"], "fc1")])
    look = sample(agent, tested, ["conv1a"], "fc1")
    right = probes.right(look)["conv1a"]
    lying = (tested.labels.cells[:, [0, 1, 2, 6], 0] >= 0).sum(1)
    assert np.array_equal(np.bincount(look.cells["conv1a"].rows), lying + 1), "every entity and one empty cell"
    assert right.mean() > 0.7, "random filters keep colours and shapes; the most frequent class is an empty cell"
    assert probes.pursued(look).shape == (48,)
    blinded = sample(agent, tested, ["conv1a"], "fc1", [("conv1a", Constant())])
    assert probes.right(blinded)["conv1a"].mean() < right.mean() - 0.1
    assert len(set(probes.pursued(blinded).tolist())) == 1
    with pytest.raises(ValueError, match="fc1 must be a map"):
        sample(agent, fitted, ["fc1"])
    with pytest.raises(ValueError, match="conv1a must be flat"):
        sample(agent, fitted, ["conv1a"], "conv1a")
    with pytest.raises(ValueError, match="nothing is pursued"):
        PerceptionProbes([look._replace(pursued=np.full(48, -1))])


def test_samples_are_the_agents_own_maps_whatever_the_size_of_a_batch(monkeypatch):
    torch.manual_seed(0)
    agent, shown = CustomCNN().eval(), views(0, 9)
    whole = sample(agent, shown, ["conv2b"], "fc1")
    with torch.no_grad():
        acts = agent.forward(torch.from_numpy(shown.frames), record=("conv2b", "fc1")).activations
    rows, places, classes = _cells(agent, shown, "conv2b", 0)
    assert torch.equal(whole.cells["conv2b"].around, neighbourhoods(acts["conv2b"], rows, places))
    assert torch.equal(whole.goals, acts["fc1"])
    monkeypatch.setattr("interpretability.perception._BATCH", 4)
    parts = sample(agent, shown, ["conv2b"], "fc1").cells["conv2b"]
    assert np.array_equal(parts.rows, rows)
    assert np.array_equal(parts.classes, classes)
    torch.testing.assert_close(parts.around, whole.cells["conv2b"].around)


def test_probes_fitted_across_edits_tell_what_lies_there_from_how_much_it_is_wanted():
    """Planted: one number says what lies there, faintly; another how much it is wanted, loudly, until it is edited."""
    generator = torch.Generator().manual_seed(0)

    def samples(wanted: list[int]) -> Samples:
        kind = torch.randint(0, 2, (400,), generator=generator)
        middle = torch.stack([0.5 * kind, 5.0 * torch.tensor(wanted)[kind]], 1)
        around = torch.zeros(400, 2, 9)
        around[:, :, 4] = middle + 0.1 * torch.randn(400, 2, generator=generator)
        cells = CellSamples(around.flatten(1), kind.numpy(), np.arange(400))
        return Samples({"conv3a": cells}, around[:, 1], np.array(wanted)[kind.numpy()])

    untouched, reversed_, alike = samples([0, 1]), samples([1, 0]), samples([1, 1])
    naive, across = PerceptionProbes([untouched]), PerceptionProbes([untouched, reversed_])
    assert naive.right(samples([0, 1]))["conv3a"].mean() > 0.99
    assert naive.right(alike)["conv3a"].mean() < 0.6, "of an edit it reads how much is wanted"
    assert across.right(alike)["conv3a"].mean() > 0.95, "though it never saw this edit"
    assert (across.pursued(alike) == 1).all()
