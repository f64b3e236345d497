import numpy as np
import pytest
import torch

from interpretability.tracking import centroids, equivariance, overlap, responses, tracking_scores

WORLD, STEPS = 8, 16


def square() -> np.ndarray:
    """Centres of cells around a square."""
    side = [(1, y) for y in range(1, 5)] + [(x, 5) for x in range(1, 5)]
    side += [(5, y) for y in range(5, 1, -1)] + [(x, 1) for x in range(5, 1, -1)]
    return np.array(side) + 0.5


def walk() -> torch.Tensor:
    """Unit 0 is lit at the entity, 1 at the opposite place, 2 never changes, 3 is noise, 4 is dark at the entity."""
    generator = torch.Generator().manual_seed(0)
    acts = torch.zeros(STEPS, 5, WORLD, WORLD)
    acts[:, 2, 3, 3] = 5
    acts[:, 3] = torch.rand(STEPS, WORLD, WORLD, generator=generator)
    acts[:, 4] = 1
    for step, (x, y) in enumerate(square()):
        column, row = int(x), WORLD - 1 - int(y)
        acts[step, 0, row, column] = 2
        acts[step, 1, WORLD - 1 - row, WORLD - 1 - column] = 2
        acts[step, 4, row, column] = 0
    return acts


def test_finds_what_follows_and_nothing_else():
    scores = tracking_scores([walk(), walk()], [square(), square()], WORLD)
    assert scores.tracks.tolist() == [True, False, False, False, True]
    np.testing.assert_allclose(scores.equivariance[[0, 1, 2, 4]], [1, -1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(scores.overlap[[0, 2, 4]], [1, 0, 1], atol=1e-5)
    assert abs(scores.shuffled_equivariance[0]) < 0.15
    assert scores.shuffled_overlap[0] < 0.5


def test_one_unit_of_many_stands_by_itself():
    acts = torch.zeros(STEPS, 128, WORLD, WORLD)
    acts[:, 7] = walk()[:, 0]
    assert tracking_scores([acts], [square()], WORLD, shuffles=99).tracks.nonzero()[0].tolist() == [7]


def test_agrees_with_naive_loops():
    acts, where = walk(), square()
    response = responses(acts)
    on_map = np.stack([where[:, 0], WORLD - where[:, 1]], 1)
    places = torch.from_numpy(on_map[None]).float()
    fast_cosine = equivariance(places, *centroids(response))[0]
    fast_overlap = overlap(places[0], response, (1.0, 1.0)).diagonal().mean(1)
    for unit in range(5):
        cosines, shares, centres = [], [], []
        for step in range(STEPS):
            total = x = y = near = 0.0
            for row in range(WORLD):
                for column in range(WORLD):
                    value = abs(float(acts[step, unit, row, column] - acts[:, unit, row, column].median()))
                    total, x, y = total + value, x + value * (column + 0.5), y + value * (row + 0.5)
                    dx, dy = abs(column + 0.5 - on_map[step, 0]), abs(row + 0.5 - on_map[step, 1])
                    near += value if max(dx, dy) <= 1 else 0.0
            centres.append((x / total, y / total) if total else None)
            shares.append(near / total if total else 0.0)
        for step in range(STEPS):
            here, there = centres[step], centres[(step + 1) % STEPS]
            move = on_map[(step + 1) % STEPS] - on_map[step]
            shift = np.subtract(there, here) if here and there else np.zeros(2)
            length = np.linalg.norm(shift)
            cosines.append(float(move @ shift / np.linalg.norm(move) / length) if length > 1e-6 else 0.0)
        assert float(fast_cosine[unit]) == pytest.approx(np.mean(cosines), abs=1e-4)
        assert float(fast_overlap[unit]) == pytest.approx(np.mean(shares), abs=1e-4)


def test_noise_is_found_as_seldom_as_promised():
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(STEPS, 200, WORLD, WORLD, generator=generator)
    assert tracking_scores([noise], [square()], WORLD, shuffles=99).tracks.mean() <= 0.05
    with pytest.raises(ValueError, match="at least one walk"):
        tracking_scores([], [], WORLD)
