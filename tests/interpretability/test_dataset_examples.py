import pytest
import torch
from torch import Tensor

from interpretability.dataset_examples import DatasetExamples


def stream(count: int = 150, units: int = 5, levels: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)
    # few distinct values, so that ties are the rule
    activations = torch.randint(0, 40, (count, units, 3, 5), generator=generator).float() / 8
    activations *= torch.rand(count, 1, 1, 1, generator=generator) < 0.3
    return frames, activations, torch.randint(0, levels, (count,), generator=generator)


def brute_force(scores: Tensor, levels: Tensor | None, k: int) -> list[int]:
    chosen: list[int] = []
    for index in scores.sort(descending=True, stable=True).indices.tolist():
        if levels is None or all(levels[index] != levels[other] for other in chosen):
            chosen.append(index)
    return chosen[:k]


@pytest.mark.parametrize("one_per_level", [True, False])
@pytest.mark.parametrize("batch", [1, 37, 150])
@pytest.mark.parametrize("k", [1, 9, 50])
def test_examples_equal_brute_force(one_per_level: bool, batch: int, k: int) -> None:
    frames, activations, levels = stream()
    examples = DatasetExamples(k, one_per_level)
    for start in range(0, len(frames), batch):
        rows = slice(start, start + batch)
        examples.update(frames[rows], activations[rows], levels[rows])
    scores = activations.amax((2, 3))
    for unit in range(activations.shape[1]):
        found = examples.of_unit(unit)
        expected = brute_force(scores[:, unit], levels if one_per_level else None, k)
        assert [example.place for example in found] == expected
        for example in found:
            assert example.score == scores[example.place, unit]
            assert example.level == levels[example.place]
            assert example.heat[example.peak] == example.score
            assert torch.equal(example.heat, activations[example.place, unit])
            assert torch.equal(example.frame, frames[example.place])


def test_statistics_are_those_of_the_whole_stream() -> None:
    frames, activations, levels = stream()
    examples = DatasetExamples(2)
    for rows in torch.arange(len(frames)).split(64):
        examples.update(frames[rows], activations[rows], levels[rows])
    torch.testing.assert_close(examples.mean, activations.mean((0, 2, 3)))
    torch.testing.assert_close(examples.frequency, (activations > 0).float().mean((0, 2, 3)))
    torch.testing.assert_close(examples.maximum, activations.amax((0, 2, 3)))
    assert examples.num_frames == len(frames)


def test_memory_does_not_grow_with_the_stream() -> None:
    frames, activations, levels = stream()
    examples = DatasetExamples(3)

    def held() -> int:
        return sum(value.nbytes for value in vars(examples).values() if isinstance(value, Tensor))

    examples.update(frames[:50], activations[:50], levels[:50])
    before = held()
    for _ in range(5):
        examples.update(frames, activations, levels)
    assert held() == before


def test_flat_taps_and_bfloat16_and_missing_levels() -> None:
    examples = DatasetExamples(2, one_per_level=False)
    frames = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    examples.update(frames, torch.tensor([[0.0], [2.0], [1.0]], dtype=torch.bfloat16))
    assert [(example.place, example.score, example.peak, example.level) for example in examples.of_unit(0)] == [
        (1, 2.0, (0, 0), -1),
        (2, 1.0, (0, 0), -1),
    ]


def test_faults_are_named() -> None:
    frames, activations, levels = stream(4)
    with pytest.raises(ValueError, match="at least 1"):
        DatasetExamples(0)
    with pytest.raises(ValueError, match="one_per_level=False"):
        DatasetExamples(1).update(frames, activations)
    with pytest.raises(ValueError, match="another number"):
        DatasetExamples(1).update(frames, activations[:3], levels)
    with pytest.raises(ValueError, match="diverged"):
        DatasetExamples(1).update(frames, activations * torch.nan, levels)


def test_examples_near_a_target_equal_brute_force() -> None:
    frames, activations, levels = stream()
    targets = torch.tensor([0.5, 1.0, 4.9, 2.0, torch.nan])
    examples = DatasetExamples(6, targets=targets)
    for rows in torch.arange(len(frames)).split(37):
        examples.update(frames[rows], activations[rows], levels[rows])
    scores = activations.amax((2, 3))
    for unit in range(4):
        found = examples.of_unit(unit)
        assert [e.place for e in found] == brute_force(-(scores[:, unit] - targets[unit]).abs(), levels, 6)
        assert all(e.score == scores[e.place, unit] for e in found)
    assert examples.of_unit(4) == []
    torch.testing.assert_close(examples.maximum, activations.amax((0, 2, 3)))
    with pytest.raises(ValueError, match="one a unit"):
        DatasetExamples(6, targets=targets[:3]).update(frames, activations, levels)


def greedy(activations: Tensor, unit: int, candidates: list[int], k: int, weight: float) -> list[int]:
    """One by one, by hand: score less weight x the highest activation x the highest cosine with those before."""

    def at_peak(place: int) -> Tensor:
        flat = activations[place].flatten(1)
        return flat[:, flat[unit].argmax()]

    def worth(place: int, chosen: list[int]) -> float:
        cosines = [float(torch.cosine_similarity(at_peak(place), at_peak(other), dim=0)) for other in chosen]
        highest = float(activations[:, unit].max())
        return float(activations[place, unit].max()) - weight * highest * max(cosines, default=0.0)

    chosen: list[int] = []
    while len(chosen) < k:
        left = [place for place in candidates if place not in chosen]
        chosen.append(max(left, key=lambda place: worth(place, chosen)))
    return chosen


@pytest.mark.parametrize("one_per_level", [True, False])
@pytest.mark.parametrize("batch", [1, 37, 150])
def test_diverse_examples_equal_brute_force(one_per_level: bool, batch: int) -> None:
    frames, _, levels = stream()
    generator = torch.Generator().manual_seed(1)
    activations = torch.rand(len(frames), 5, 3, 5, generator=generator).square()  # no two alike
    k, weight = 4, 0.7
    examples = DatasetExamples(k, one_per_level, diversity=weight)
    for rows in torch.arange(len(frames)).split(batch):
        examples.update(frames[rows], activations[rows], levels[rows])
    differ = 0
    for unit in range(5):
        scores = activations[:, unit].amax((1, 2))
        pool = brute_force(scores, levels if one_per_level else None, 4 * k)
        found = examples.of_unit(unit)
        assert [each.place for each in found] == greedy(activations, unit, pool, k, weight)
        assert all(torch.equal(each.frame, frames[each.place]) for each in found)
        differ += [each.place for each in found] != pool[:k]
    assert differ > 2, "the weight matters here"


def test_copies_of_one_example_give_way_to_others() -> None:
    """The best frame many times over: without diversity nothing else is shown."""
    activations = torch.zeros(20, 3, 1, 1)
    activations[:, 0] = torch.linspace(1.0, 0.9, 20)[:, None, None]
    activations[:17, 1], activations[17:, 2] = 1.0, 1.0
    frames = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 64, 64, 3).contiguous()
    places = {}
    for weight in (0.0, 0.5):
        examples = DatasetExamples(5, one_per_level=False, diversity=weight)
        examples.update(frames, activations)
        places[weight] = [each.place for each in examples.of_unit(0)]
    assert places == {0.0: [0, 1, 2, 3, 4], 0.5: [0, 17, 1, 2, 3]}
    with pytest.raises(ValueError, match="must not be negative"):
        DatasetExamples(1, diversity=-1.0)
