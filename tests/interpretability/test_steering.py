import numpy as np
import pytest
import torch

from environments import EnvironmentSettings
from environments.heist import ENTITIES, label_states
from interpretability.episodes import first_states
from interpretability.perception import SEEN
from interpretability.steering import (
    EMPTY,
    EditOfEach,
    Reader,
    Rows,
    SteerEdit,
    eigen_directions,
    flat_rows,
    latent_steering,
    layer_behind,
    map_rows,
    mean_directions,
    operation,
    probe_directions,
    probe_reader,
)
from networks import BilinearImpala, CustomCNN, SparseAutoencoder
from networks.bilinear_impala import multiply
from studies.retargeting_search import choice_mazes

EASY = EnvironmentSettings()


def planted(seed: int = 0, noise: float = 0.02) -> tuple[Rows, torch.Tensor]:
    """Rows of 8 channels; each entity adds its own direction to what lies everywhere."""
    generator = torch.Generator().manual_seed(seed)
    writes = torch.randn(EMPTY, 8, generator=generator)
    classes = torch.arange(EMPTY + 1).repeat(200)
    acts = 3 + noise * torch.randn(len(classes), 8, generator=generator)
    lying = classes < EMPTY
    acts[lying] += writes[classes[lying]]
    return Rows(acts, classes), writes


def test_directions_are_those_that_were_planted() -> None:
    rows, writes = planted()
    torch.testing.assert_close(mean_directions(rows), writes, atol=0.02, rtol=0)
    reader = probe_reader(rows)
    found = probe_directions(rows)
    empty = torch.full((1, 8), 3.0)
    for entity in range(EMPTY):
        read = reader(empty + found[entity])[0]
        expected = torch.eye(EMPTY)[entity]
        torch.testing.assert_close(read, expected, atol=0.05, rtol=0)
        torch.testing.assert_close(reader(empty + writes[entity])[0], expected, atol=0.05, rtol=0)
        assert found[entity].norm() < 1.1 * writes[entity].norm(), "the shortest change"


def test_operations_do_to_a_planted_map_what_they_say() -> None:
    rows, writes = planted()
    reader = probe_reader(rows)
    acts = torch.full((1, 8, 2, 3), 3.0)
    places = {0: (0, 0), 1: (1, 2), 2: (0, 2)}
    for entity, (row, column) in places.items():
        acts[0, :, row, column] += writes[entity]

    def steered(name: str, asked: int, preferred: int) -> torch.Tensor:
        return SteerEdit(reader, writes, *operation(name, asked, preferred), strength=1.0)(acts)

    def written(*entities: tuple[int, int, int]) -> torch.Tensor:
        expected = torch.full((1, 8, 2, 3), 3.0)
        for entity, row, column in entities:
            expected[0, :, row, column] += writes[entity]
        return expected

    near = {"atol": 0.15, "rtol": 0}
    torch.testing.assert_close(steered("swap", 1, 0), written((1, 0, 0), (0, 1, 2), (2, 0, 2)), **near)
    torch.testing.assert_close(steered("remove", 1, 0), written((1, 1, 2)), **near)
    once_more = written((0, 0, 0), (1, 1, 2), (1, 1, 2), (2, 0, 2))
    torch.testing.assert_close(steered("raise", 1, 0), once_more, **near)
    torch.testing.assert_close(steered("add", 1, 0), acts + writes[1][:, None, None], **near)
    nothing = SteerEdit(reader, writes, *operation("swap", 1, 0), strength=0.0)
    assert torch.equal(nothing(acts), acts)
    with pytest.raises(ValueError, match="operation 'turn' is unknown"):
        operation("turn", 0, 1)


def test_windows_are_written_around_the_position_as_a_loop_would() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(EMPTY, 3, 3, 3, generator=generator)
    reader = Reader(torch.randn(EMPTY, 3, generator=generator), torch.zeros(EMPTY))
    acts = torch.randn(2, 3, 4, 5, generator=generator)
    edit = SteerEdit(reader, directions, torch.eye(EMPTY), torch.zeros(EMPTY), strength=2.0)
    expected = acts.clone()
    read = reader(acts)
    for frame, entity, row, column in np.ndindex(2, EMPTY, 4, 5):
        for down, right in np.ndindex(3, 3):
            y, x = row + down - 1, column + right - 1
            if 0 <= y < 4 and 0 <= x < 5:
                expected[frame, :, y, x] += 2 * read[frame, entity, row, column] * directions[entity, :, down, right]
    torch.testing.assert_close(edit(acts), expected)
    flat = SteerEdit(reader, directions[..., 0, 0], torch.eye(EMPTY), torch.zeros(EMPTY), strength=2.0)
    assert flat(acts[..., 0, 0]).shape == (2, 3)


def test_rows_are_of_the_cells_in_which_things_lie() -> None:
    mazes = [maze for maze, _ in choice_mazes(first_states(range(6), EASY), 0, (2, 4))]
    labels = label_states([maze.to_bytes() for maze in mazes])
    side = 9
    acts = torch.arange(6 * side * side, dtype=torch.float32).view(6, 1, side, side)
    rows = map_rows(acts, labels, empty=4)
    for number, name in enumerate(SEEN):
        cells = labels.cells[:, ENTITIES.index(name)].astype(int)
        there = [n for n in range(6) if cells[n, 0] >= 0]
        expected = [float(acts[n, 0, side - 1 - cells[n, 1], cells[n, 0]]) for n in there]
        assert rows.acts[rows.classes == number].flatten().tolist() == expected
    assert (rows.classes == EMPTY).sum() == 6 * 4
    taken = {float(acts[n, 0, side - 1 - y, x]) for n in range(6) for x, y in labels.cells[n].astype(int) if x >= 0}
    assert not taken & set(rows.acts[rows.classes == EMPTY].flatten().tolist())
    goals = flat_rows(torch.arange(5.0)[:, None], np.array([2, -1, 0, 1, 3]))
    assert goals.classes.tolist() == [2, 0, 1, 3]
    assert goals.acts.flatten().tolist() == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="no view shows gem"):
        flat_rows(torch.arange(4.0)[:, None], np.array([2, -1, 0, 1]))


def test_the_latent_that_fires_for_an_entity_reads_and_writes_it() -> None:
    rows, writes = planted()
    sae = SparseAutoencoder(8, expansion=1).eval()
    with torch.no_grad():
        sae.decoder_weight.zero_()
        sae.encoder_weight.zero_()
        basis = torch.linalg.pinv(writes).T  # reads each entity alone
        for entity in range(EMPTY):
            sae.decoder_weight[:, entity, 0, 0] = writes[entity] / 2
            sae.encoder_weight[entity, :, 0, 0] = 2 * basis[entity]
        sae.encoder_bias.copy_(-(sae.encoder_weight[:, :, 0, 0] @ torch.full((8,), 3.0)))
        sae.encoder_bias[EMPTY:] = -1
    latents = Rows(sae.encode(rows.acts).detach(), rows.classes)
    reader, directions, units = latent_steering(latents, sae)
    assert units == list(range(EMPTY))
    torch.testing.assert_close(directions, writes, atol=0.05, rtol=0)
    read = reader(torch.full((1, 8), 3.0)[..., None, None] + writes[2][None, :, None, None])
    torch.testing.assert_close(read.flatten(), torch.eye(EMPTY)[2], atol=0.05, rtol=0)


def test_latents_that_see_neighbours_are_read_and_written_as_on_whole_maps() -> None:
    """With a 3 x 3 kernel: readings and means from whole maps, by a loop; the direction as the decoder lays it."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(2, expansion=4, kernel_size=3).eval().requires_grad_(False)
    mazes = [maze for maze, _ in choice_mazes(first_states(range(6), EASY), 0, (2, 4))]
    labels = label_states([maze.to_bytes() for maze in mazes])
    acts = torch.rand(6, 2, 9, 9)
    maps = sae.encode(acts)
    rows = map_rows(maps, labels, empty=4)
    reader, directions, units = latent_steering(rows, sae)
    padded = torch.nn.functional.pad(acts, (1, 1, 1, 1))
    for entity, unit in enumerate(units):
        lying = labels.cells[:, ENTITIES.index(SEEN[entity])].astype(int)
        values = []
        for frame, (x, y) in enumerate(lying):
            if x >= 0:
                window = padded[frame, :, 8 - y : 11 - y, x : x + 3]
                values.append(float((window * sae.encoder_weight[unit]).sum() + sae.encoder_bias[unit]))
        there, nowhere = np.maximum(values, 0).mean(), rows.elsewhere()[unit].item()
        read = reader(acts)[0, entity]
        expected = ((maps[0, unit] - nowhere) / max(there - nowhere, 1e-6)).clamp(0, 1)
        torch.testing.assert_close(read, expected, atol=1e-4, rtol=1e-4)
        one = torch.zeros(1, 8, 5, 5)
        one[0, unit, 2, 2] = there - nowhere
        laid = (sae.decode(one) - sae.decode(torch.zeros_like(one)))[0, :, 1:4, 1:4]
        torch.testing.assert_close(directions[entity], laid, atol=1e-5, rtol=1e-4)
        pushed = SteerEdit(reader, directions, torch.zeros(EMPTY, EMPTY), torch.eye(EMPTY)[entity], strength=1.0)
        everywhere = torch.zeros(1, 8, 9, 9)
        everywhere[0, unit] = there - nowhere
        torch.testing.assert_close(pushed.change(acts[:1]), sae.decode(everywhere) - sae.decode(0 * everywhere))


def test_each_row_undergoes_the_edit_of_its_trial() -> None:
    reader = Reader(torch.zeros(EMPTY, 3), torch.zeros(EMPTY))
    directions = torch.eye(EMPTY, 3)
    edits = [SteerEdit(reader, directions, *operation("add", entity, 0), strength=1.0) for entity in range(3)]
    each = EditOfEach(edits)
    assert each.num_trials == 3
    each.assign(torch.tensor([2, 0, 2, 1]))
    assert torch.equal(each(torch.zeros(4, 3)), torch.eye(3)[[2, 0, 2, 1]])


def test_eigenfilters_raise_what_the_next_layer_reads() -> None:
    """Along the largest eigenvector the layer's output moves by its eigenvalue, in the direction asked about."""
    torch.manual_seed(0)
    agent = BilinearImpala().eval()
    assert layer_behind(agent, "conv2a") == "conv2b"
    assert layer_behind(agent, "fc1") == "fc2"
    assert layer_behind(agent, "pool4") is None, "it is flattened first"
    assert layer_behind(agent, "conv2a.pre") is layer_behind(agent, "fc1.pre") is None, "its own gate comes next"
    assert layer_behind(CustomCNN(), "conv2a") is None
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(EMPTY).repeat(50)
    rows = Rows(torch.randn(200, 256, generator=generator) + torch.randn(EMPTY, 256, generator=generator)[classes],
                classes)  # fmt: skip
    behind = Rows(multiply(agent.fc2(rows.acts)).detach(), classes)
    found = eigen_directions(agent, "fc1", rows, behind)
    means = mean_directions(rows)
    assert torch.allclose(found.norm(dim=1), means.norm(dim=1), rtol=1e-4)
    assert ((found * means).sum(1) > 0).all()
    with pytest.raises(ValueError, match="no bilinear layer reads pool4"):
        eigen_directions(agent, "pool4", rows, behind)
