import numpy as np
import pytest
import torch

from environments.heist import ENTITIES
from interpretability.concept_score import ConceptScore, LevelAUC, auc_over_levels
from interpretability.unit_numbers import entity_positions

GEM, PLAYER = ENTITIES.index("gem"), ENTITIES.index("player")


def frames(count: int = 400) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = torch.full((count, len(ENTITIES), 2), -1)
    for entity in (0, GEM, PLAYER):
        cells[:, entity] = torch.randint(0, 9, (count, 2), generator=generator)
    return {"cells": cells, "world_dim": torch.full((count,), 9), "levels": torch.arange(count) // 3}


def score(maps: torch.Tensor, labels: dict[str, torch.Tensor]) -> ConceptScore:
    made = ConceptScore(maps.shape[1])
    for rows in torch.arange(len(maps)).split(64):
        made.update(maps[rows], labels["cells"][rows], labels["world_dim"][rows], labels["levels"][rows])
    return made


def test_a_detector_a_silence_and_noise() -> None:
    labels = frames()
    present = entity_positions(labels["cells"], labels["world_dim"], 9, 9).float()
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(400, 3, 9, 9, generator=generator)
    maps = torch.stack([present[GEM], -present[0], 1 - present[PLAYER], torch.zeros_like(present[0])], 1)
    made = score(torch.cat([maps, noise], 1), labels)
    assert made.entity_auc() == 1  # of those that are there
    found = made.detectors()
    assert found.units.tolist() == [0, 1, 2, 4, 5, 6], "the unit that is never active stands for nothing"
    assert found.entities[:3].tolist() == [GEM, 0, PLAYER]
    assert found.negative[:2].tolist() == [False, True]
    assert found.sign[[0, 2]].tolist() == [1, -1]
    assert found.auc[:3].tolist() == [1, 1, 1]
    assert found.auc[3:] == pytest.approx(0.5, abs=0.05)


def test_trying_many_units_gains_nothing() -> None:
    labels = frames()
    maps = torch.rand(400, 60, 9, 9, generator=torch.Generator().manual_seed(2))
    made = score(maps, labels)
    aucs = made.detectors().auc
    assert abs(aucs.mean() - 0.5) < 3 * aucs.std() / len(aucs) ** 0.5
    assert made.entity_auc() == pytest.approx(0.5, abs=0.04)


def by_level(maps: torch.Tensor, labels: dict[str, torch.Tensor], rows: torch.Tensor | None = None) -> LevelAUC:
    """AUCs of detectors chosen on all frames; rows: only over some of them."""
    found = LevelAUC(score(maps, labels).detectors())
    for some in (torch.arange(len(maps)) if rows is None else rows).split(50):
        found.update(maps[some], labels["cells"][some], labels["world_dim"][some], labels["levels"][some])
    return found


def noisy(strength: float, seed: int, labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Five units that respond to the player, and one that is silent at it."""
    present = entity_positions(labels["cells"], labels["world_dim"], 9, 9).float()[PLAYER]
    noise = torch.rand(400, 6, 9, 9, generator=torch.Generator().manual_seed(seed))
    signs = torch.tensor([1.0] * 5 + [-1.0])[:, None, None]
    return noise + 1 + strength * signs * present[:, None]


def test_level_aucs_add_up_to_those_of_all_levels() -> None:
    labels = frames()
    maps = torch.cat([noisy(0.3, 3, labels), -noisy(0.3, 4, labels)], 1)
    found = by_level(maps, labels)
    assert auc_over_levels(found).value == pytest.approx(found.detectors.auc.mean(), abs=1e-6)
    assert len(found.sums()) == len({int(level) for level in labels["levels"] if level % 2})


def test_the_bounds_are_as_wide_as_aucs_vary_between_sets_of_levels() -> None:
    """Against fresh draws of levels, the AUC of which is computed by sorting."""
    labels = frames(1200)
    present = entity_positions(labels["cells"], labels["world_dim"], 9, 9)[PLAYER].float()
    # how strongly the player is marked differs from level to level
    strength = torch.rand(400, generator=torch.Generator().manual_seed(5))[labels["levels"]]
    noise = torch.rand(1200, 1, 9, 9, generator=torch.Generator().manual_seed(6))
    maps = noise + 1 + (strength[:, None, None] * present)[:, None]
    interval = auc_over_levels(by_level(maps, labels))
    odd = sorted({int(level) for level in labels["levels"] if level % 2})
    generator = np.random.default_rng(0)
    values = []
    for _ in range(200):
        chosen = torch.cat([(labels["levels"] == level).nonzero()[:, 0] for level in generator.choice(odd, len(odd))])
        there = present[chosen].flatten().bool().numpy()
        ranks = maps[chosen].flatten().numpy().argsort().argsort() + 1
        many, few = (~there).sum(), there.sum()
        values.append((ranks[there].sum() - few * (few + 1) / 2) / (many * few))
    low, high = np.quantile(values, [0.025, 0.975])
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.3)
    assert interval.low == pytest.approx(low, abs=0.01)


def test_differences_are_paired_by_level() -> None:
    labels = frames()
    strong, weak = noisy(0.6, 7, labels), noisy(0.2, 8, labels)
    better, worse = by_level(strong, labels), by_level(weak, labels)
    gain = auc_over_levels(better, worse)
    assert 0.02 < gain.low < gain.value < gain.high
    same = auc_over_levels(better, better)
    assert same == (0, 0, 0)
    with pytest.raises(ValueError, match="different levels"):
        auc_over_levels(better, by_level(weak, labels, torch.arange(100)))
