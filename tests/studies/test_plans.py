from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from environments.heist import DIRECTIONS, ENTITIES
from interpretability.choices import Choices
from networks import CustomCNN, save_weights
from studies import Plans, plans
from studies.plans import _guess

SMALL = {"fit_levels": 300, "num_levels": 60, "distances": (1, 3), "least": 20, "num_environments": 4}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def prefers(order: Sequence[str]):
    """Play that touches whichever of the two comes first in an order, of mazes that show which two there are."""
    ranks = {ENTITIES.index(name): rank for rank, name in enumerate(order)}

    def play(agent: object, states: list[bytes], **given: object) -> Choices:
        touched = np.array([min(pair, key=ranks.__getitem__) for pair in play.pairs[: len(states)]])
        return Choices(touched, np.ones(len(states), int), [], [])

    return play


def test_an_agent_that_plans_one_way_is_told_from_one_that_plans_both(
    agent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Plans(agent, taps=("fc1", "fc2", "pool4"), **SMALL)
    play, made = prefers(("blue_key", "green_key", "red_key", "gem")), plans.choice_mazes

    def mazes(*given: object) -> list:
        found = made(*given)
        play.pairs = [[ENTITIES.index(name) for name in pair] for _, pair in found]
        return found

    monkeypatch.setattr(plans, "choice_mazes", mazes)
    monkeypatch.setattr(plans, "play_choices", play)
    parts = {name: study._part(levels, name) for name, levels in study.levels.items()}
    for part in parts.values():
        assert (part.direction[:, 0] != part.direction[:, 1]).all(), "each by another first move"
        assert (part.pair[:, 0] < part.pair[:, 1]).all(), "ENTITIES lists them in this order"

    def record(network: CustomCNN, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        part = next(part for part in parts.values() if len(part.frames) == len(frames))
        ways = torch.nn.functional.one_hot(torch.from_numpy(part.direction), len(DIRECTIONS)).float()
        noise = torch.randn(len(frames), 4, generator=torch.Generator().manual_seed(len(frames)))
        if network is not study.agent:
            return dict.fromkeys(study.taps, noise)
        return {"fc1": ways[:, 0], "fc2": ways.flatten(1), "pool4": noise}

    monkeypatch.setattr(study, "_record", record)
    monkeypatch.setattr(study, "_part", lambda levels, name: parts[name])
    report = study.run()
    found = report.summary
    assert found["plans/fc1/wanted"] == found["plans/fc2/wanted"] == found["plans/fc2/other"] == 1
    assert found["plans/guessed_other"] < 0.85, "at some forks two more ways are open"
    assert abs(found["plans/fc1/other"] - found["plans/guessed_other"]) < 0.1, "the one tells no more than that"
    assert found["plans/pool4/wanted"] < 0.6
    assert found["plans/fc2/above_random_other_low"] > 0.2
    assert found["plans/pool4/above_random_other"] == 0, "the same noise"
    assert found["plans/touched"] == 1
    table = report.tables["by_entity"]
    assert {row[2] for row in table.rows if row[1] == "other"} <= {"green_key", "red_key", "gem"}
    assert {row[2] for row in table.rows if row[1] == "wanted"} <= {"blue_key", "green_key", "red_key"}


def test_a_guess_is_what_was_most_frequent_with_the_other_way() -> None:
    rng = np.random.default_rng(0)
    fit, test = rng.integers(4, size=(200, 2)), rng.integers(4, size=(50, 2))
    for role in (0, 1):
        expected = []
        for pair in test.tolist():
            seen = [row[role] for row in fit.tolist() if row[1 - role] == pair[1 - role]]
            expected.append(max(range(4), key=seen.count) == pair[role])
        assert _guess(fit, test, role).tolist() == expected


def test_refuses_what_cannot_be_read(agent: str) -> None:
    for given, said in (
        ({"taps": ("logits",)}, "logits is what the plan ends in"),
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
