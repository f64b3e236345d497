from pathlib import Path

import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State
from environments.heist import ENTITIES, label_states
from environments.levels import TRAINING_START
from interpretability.episodes import first_states
from networks import ChannelEdit, CustomCNN, load_agent, save_weights
from studies.retargeting import Retargeting
from studies.retargeting_search import ASKED, SearchSettings, choice_mazes

SMALL = {
    "num_levels": 12,
    "comparison_levels": 2,
    "max_steps": 12,
    "finish_steps": 4,
    "num_environments": 12,
    "probe_mazes": 12,
}


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def saved(folder: Path, agent: str, entity: str) -> str:
    edit = ChannelEdit(32).requires_grad_(False)
    edit.shift[ASKED.index(entity)] = 1e-9
    known = {"kind": "ChannelEdit", "agent_hash": load_agent(agent).weights_hash, "tap": "conv2b", "entity": entity}
    save_weights(folder / f"{entity}.safetensors", edit, known)
    return str(folder / f"{entity}.safetensors")


def test_an_edit_that_does_nothing_redirects_nobody(agent: str, tmp_path: Path) -> None:
    """With the unedited agent's noise nothing differs, so that no counted maze is a success by construction."""
    files = [saved(tmp_path, agent, entity) for entity in ASKED]
    study = Retargeting(agent, edits=files, distances=(1, 1), precision="fp32", cache_dir=str(tmp_path), **SMALL)
    report = study.run()
    summary = report.summary
    counted = [entity for entity in ASKED if summary[f"retarget/{entity}/counted"]]
    assert counted, "the test needs an agent that touches something"
    for entity in counted:
        for arm in ("success", "random_direction", "random_units", "sham_position", "wrong_entity"):
            assert summary[f"retarget/{entity}/{arm}"] == 0
            assert summary.get(f"retarget/{entity}/minus_{arm}", 0) == 0
        assert summary[f"retarget/{entity}/kl"] == pytest.approx(0, abs=1e-6)
        assert summary[f"retarget/{entity}/minus_entity_moved"] == -summary[f"retarget/{entity}/entity_moved"]
        assert summary[f"retarget/{entity}/units"] == 1
    read = [entity for entity in ASKED if f"retarget/{entity}/seen" in summary]
    assert read
    for entity in read:
        for probe in ("seen", "pursued"):
            assert summary[f"retarget/{entity}/{probe}"] == summary[f"retarget/{entity}/{probe}_before"]
        assert (
            sum(row[2] for row in report.tables["directions"].rows if row[0] == entity)
            == summary[f"retarget/{entity}/counted"]
        )
    assert set(report.films) == set(counted)
    assert "Did it go where it was sent?" in report.pages["retargeting"]


def test_each_maze_offers_its_pair_and_nothing_else_at_once() -> None:
    bases = first_states(range(TRAINING_START, TRAINING_START + 12), EnvironmentSettings())
    for maze, pair in choice_mazes(bases, 0, (2, 6), "red_key"):
        assert "red_key" in pair
        cells = label_states([maze.to_bytes()]).cells[0]
        lying = {name for name, cell in zip(ENTITIES, cells, strict=True) if cell[0] >= 0 and "lock" not in name}
        assert lying == {*pair, "gem", "player"}
        assert isinstance(maze, State)
        assert np.array_equal(maze.grid.shape, (9, 9))


def test_goes_on_from_the_edits_and_arms_that_are_done(agent: str, tmp_path: Path) -> None:
    search = SearchSettings(mazes=8, places=2, steps=3, rounds=1, played=4, unit_counts=(2, 3))
    study = Retargeting(agent, search=search, distances=(1, 1), cache_dir=str(tmp_path), **SMALL)
    first = study.run()
    assert len(first.tables["frontier"].rows) == 2 * len(ASKED)
    assert set(first.weights) == {f"edit_{entity}" for entity in ASKED}

    def never(*args: object) -> None:
        raise AssertionError("worked out again")

    again = Retargeting(agent, search=search, distances=(1, 1), cache_dir=str(tmp_path), **SMALL)
    again._play = never  # type: ignore[method-assign, assignment]
    again._film = lambda states, edit: None  # type: ignore[method-assign, assignment]
    assert again.run().summary == first.summary
    other = Retargeting(agent, search=search, distances=(1, 1), cache_dir=str(tmp_path), **SMALL | {"max_steps": 11})
    other._play = never  # type: ignore[method-assign, assignment]
    with pytest.raises(AssertionError, match="worked out again"):
        other.run()


def test_refuses_what_cannot_be_asked(agent: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none to retarget at"):
        Retargeting(agent, tap="logits", **SMALL)
    with pytest.raises(ValueError, match="one file for each"):
        Retargeting(agent, edits=[saved(tmp_path, agent, "gem")], **SMALL)
    with pytest.raises(ValueError, match=r"search\.kernel 2"):
        SearchSettings(kernel=2)
    with pytest.raises(ValueError, match="max_steps 0"):
        Retargeting(agent, **SMALL | {"max_steps": 0})
