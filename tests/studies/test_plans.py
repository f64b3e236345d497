from pathlib import Path

import numpy as np
import pytest
import torch

from environments.heist import DIRECTIONS, ENTITIES
from interpretability.choices import Choices
from networks import CustomCNN, save_weights
from studies import Plans, plans

SMALL = {"fit_levels": 240, "num_levels": 80, "distances": (1, 3), "least": 20, "num_environments": 4}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def touch_the_first(agent: object, states: list[bytes], **given: object) -> Choices:
    """Play in which the order of `ENTITIES` decides: blue, green, red, gem. The four triples come in turn."""
    touched = np.array(
        [ENTITIES.index(("blue_key", "blue_key", "blue_key", "green_key")[row % 4]) for row in range(len(states))]
    )
    return Choices(touched, np.ones(len(states), int), [], [])


def test_an_agent_that_plans_one_way_is_told_from_one_that_plans_all(
    agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Plans(agent, taps=("fc1", "fc2", "pool4"), **SMALL)
    monkeypatch.setattr(plans, "play_choices", touch_the_first)
    parts = {name: study._mazes(levels, name) for name, levels in study.levels.items()}
    for part in parts.values():
        assert (np.sort(part.direction, 1)[:, 1:] != np.sort(part.direction, 1)[:, :-1]).all(), "three first moves"
        assert (part.entities[:, :1] < part.entities[:, 1:]).all(), "ENTITIES lists them in the order of touching"
        assert (part.open_ways >= 3).all()

    def record(network: CustomCNN, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        part = next(part for part in parts.values() if len(part.frames) == len(frames))
        ways = torch.nn.functional.one_hot(torch.from_numpy(part.direction), len(DIRECTIONS)).float()
        noise = torch.randn(len(frames), 4, generator=torch.Generator().manual_seed(len(frames)))
        if network is not study.agent:
            return dict.fromkeys(study.taps, noise)
        held = torch.zeros(len(frames), len(ENTITIES), len(DIRECTIONS))
        held.scatter_(1, torch.from_numpy(part.entities)[:, :, None].expand_as(ways), ways)
        return {"fc1": ways[:, 0], "fc2": held.flatten(1), "pool4": noise}

    monkeypatch.setattr(study, "_record", record)
    monkeypatch.setattr(study, "_mazes", lambda levels, name: parts[name])
    report = study.run()
    found = report.summary
    assert found["plans/fc1/wanted"] == found["plans/fc2/wanted"] == found["plans/fc2/other"] == 1
    assert 1 / 3 < found["plans/guessed"] <= 1 / 2, "two or three more ways are open"
    assert found["plans/fc1/other_low"] < found["plans/guessed"], "the one tells nothing of the others"
    assert found["plans/fc1/other"] < 0.65
    assert found["plans/pool4/wanted"] < 0.6
    assert found["plans/fc2/above_random_other_low"] > 0.3
    assert found["plans/pool4/above_random_other"] == 0, "the same noise"
    assert found["plans/touched"] == 1
    table = report.tables["by_entity"]
    assert {row[2] for row in table.rows if row[1] == "other"} == {"green_key", "red_key", "gem"}
    assert {row[2] for row in table.rows if row[1] == "wanted"} == {"blue_key", "green_key"}
    (mazes,) = {row[4] for row in table.rows if row[:3] == ["fc1", "other", "gem"]}
    assert mazes == 60, "three of the four triples have it"


def test_records_in_the_precision_that_the_agent_plays_in(agent: str) -> None:
    study = Plans(agent, taps=("fc1",), precision="fp32", **SMALL)
    frames = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    acts = study._record(study.agent, frames)["fc1"]
    assert not torch.equal(acts, acts.bfloat16().float())


def test_refuses_what_cannot_be_read(agent: str) -> None:
    for given, said in (
        ({"taps": ("logits",)}, "CustomCNN ends in"),
        ({"taps": ("conv9",)}, "no tap 'conv9'"),
        ({"taps": ()}, "taps"),
        ({"distances": (3, 2)}, "must rise"),
        ({"least": 0}, "least"),
    ):
        with pytest.raises(ValueError, match=said):
            Plans(agent, **(SMALL | given))


def test_probes_need_mazes(agent: str) -> None:
    few = SMALL | {"fit_levels": 2, "num_levels": 2, "max_steps": 1, "distances": (6, 6)}
    with pytest.raises(ValueError, match="more max_steps or levels"):
        Plans(agent, taps=("fc1",), **few).run()
