import numpy as np
import pytest
import torch

from environments.heist import ENTITIES
from interpretability.concept_score import ConceptScore
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
    found = score(torch.cat([maps, noise], 1), labels).compute()
    assert found.of_entity["gem"] == found.of_entity["blue_key"] == found.of_entity["player"] == 1
    assert (found.unit_of["gem"], found.unit_of["blue_key"], found.unit_of["player"]) == (0, 1, 2)
    assert np.isnan(found.of_entity["red_lock"])
    assert found.per_entity == 1
    # the silent unit is left out; three stand for something, three for nothing: (3 x 1 + 3 x .5) / 6
    assert found.per_unit.value == pytest.approx(0.75, abs=0.02)


def test_trying_many_units_gains_nothing() -> None:
    labels = frames()
    maps = torch.rand(400, 60, 9, 9, generator=torch.Generator().manual_seed(2))
    found = score(maps, labels).compute()
    assert found.per_unit.low < 0.5 < found.per_unit.high
    assert found.per_entity == pytest.approx(0.5, abs=0.04)
