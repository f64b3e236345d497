import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import ENTITIES, label_states
from interpretability.unit_numbers import UnitNumbers, entity_positions


def labelled(frames: int, side: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(0, side, (frames, len(ENTITIES), 2), generator=generator)
    cells[torch.rand(frames, len(ENTITIES), generator=generator) < 0.3] = -1
    cells[:, 2] = -1  # no red key in any frame
    return {
        "cells": cells.to(torch.int16),
        "world_dim": torch.full((frames,), side),
        "direction": torch.randint(-1, 4, (frames,), generator=generator),
        "direction_tied": torch.rand(frames, generator=generator) < 0.2,
    }


def positions_by_hand(cells: torch.Tensor, side: int, size: int) -> torch.Tensor:
    found = torch.zeros(cells.shape[1], len(cells), size, size, dtype=torch.bool)
    for frame, entity in np.ndindex(*cells.shape[:2]):
        x, y = cells[frame, entity].tolist()
        for row, column in np.ndindex(size, size):
            across, up = (column + 0.5) * side / size, side - (row + 0.5) * side / size
            centre = (int((side - y - 0.5) * size / side), int((x + 0.5) * size / side)) == (row, column)
            covered = x <= across < x + 1 and y < up <= y + 1
            found[entity, frame, row, column] = x >= 0 and (covered or centre)
    return found


@pytest.mark.parametrize("size", [1, 8, 16])
def test_positions_of_entities_by_hand(size: int) -> None:
    labels = labelled(12)
    found = entity_positions(labels["cells"], labels["world_dim"], size, size)
    assert torch.equal(found, positions_by_hand(labels["cells"], 9, size))


def test_the_gem_is_seen_where_its_position_is() -> None:
    """In real frames yellow pixels lie at the gem's positions and hardly anywhere else but on a sandy floor."""
    environment = VectorEnvironment(EnvironmentSettings(start_level=0, num_levels=50), 16)
    _, frames, _ = environment.observe()
    labels = label_states(environment.get_states())
    environment.close()
    cells = torch.from_numpy(labels.cells)
    masks = entity_positions(cells, torch.from_numpy(labels.world_dim), 64, 64)[ENTITIES.index("gem")].numpy()
    red, green, blue = np.moveaxis(frames.astype(int), -1, 0)
    yellow = (red > 200) & (green > 150) & (blue < 90)
    shares = [yellow[n][masks[n]].mean() - yellow[n][~masks[n]].mean() for n in range(len(frames))]
    assert np.mean(shares) > 0.1
    upside_down = [yellow[n][masks[n][::-1]].mean() - yellow[n][~masks[n][::-1]].mean() for n in range(len(frames))]
    assert np.mean(upside_down) < np.mean(shares) / 3


def test_numbers_equal_naive_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    maps = torch.rand(60, 4, 8, 8, generator=generator).bfloat16().float()
    maps *= torch.rand(60, 4, 8, 8, generator=generator) < 0.3
    maps[:, 3] = 0
    labels = labelled(60)
    present = positions_by_hand(labels["cells"], 9, 8)
    maps[:, 0] = (maps[:, 0] + present[6]).bfloat16().float()  # unit 0 likes the gem
    numbers = UnitNumbers(4)
    for rows in torch.arange(60).split(17):
        numbers.update(maps[rows], {name: column[rows] for name, column in labels.items()})
    auc = numbers.auc()
    for entity, unit in np.ndindex(len(ENTITIES), 4):
        if entity == 2:
            assert math.isnan(auc[entity, unit])
            continue
        expected = roc_auc_score(present[entity].flatten(), maps[:, unit].flatten())
        assert auc[entity, unit] == pytest.approx(expected, abs=1e-9)
    assert auc[6, 0] > 0.95
    fired = maps.permute(0, 2, 3, 1).flatten(0, 2) > 0
    np.testing.assert_allclose(numbers.frequency, fired.float().mean(0), rtol=1e-6)
    np.testing.assert_allclose(
        numbers.mean_active[:3], [maps[:, u][maps[:, u] > 0].mean() for u in range(3)], rtol=1e-5
    )
    assert math.isnan(numbers.mean_active[3])
    phi = numbers.co_activity()
    np.testing.assert_allclose(phi[:3, :3], np.corrcoef(fired[:, :3].T.numpy()), atol=1e-9)
    assert np.isnan(phi[3]).all()
    use = (labels["direction"] >= 0) & ~labels["direction_tied"]
    directions, means = labels["direction"][use].numpy(), maps.mean((2, 3))[use].double().numpy()
    by_hand = np.stack([means[directions == d].mean(0) for d in range(4)])
    np.testing.assert_allclose(numbers.direction_means(), by_hand, atol=1e-7)
    between = sum((directions == d).sum() * (by_hand[d] - means.mean(0)) ** 2 for d in range(4))
    eta = between[:3] / ((means - means.mean(0)) ** 2).sum(0)[:3]
    np.testing.assert_allclose(numbers.direction_selectivity()[:3], eta, rtol=1e-5)
    assert math.isnan(numbers.direction_selectivity()[3])


def test_signed_units_go_together_by_their_activations() -> None:
    maps = torch.randn(30, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[:, 1] = maps[:, 0] / 4 - 5  # never above 0, yet all the same
    maps[:, 3] = -0.1
    numbers = UnitNumbers(4, signed=True)
    for part in maps.split(11):
        numbers.update(part)
    found = numbers.co_activity()
    np.testing.assert_allclose(found[:3, :3], np.corrcoef(maps[:, :3].transpose(0, 1).flatten(1).numpy()), atol=1e-6)
    assert found[0, 1] == pytest.approx(1)
    assert np.isnan(found[3]).all()


def test_without_labels_what_needs_them_is_unknown() -> None:
    numbers = UnitNumbers(2)
    numbers.update(torch.rand(5, 2, 3, 3))
    assert np.isnan(numbers.auc()).all()
    assert np.isnan(numbers.direction_selectivity()).all()
    assert (numbers.frequency > 0).all()
