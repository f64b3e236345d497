from pathlib import Path
from typing import Any

import pytest

from environments import State
from environments.heist import HeistPart
from interpretability.choices import retrace
from studies import VectorFields
from studies.vector_fields import _key_colours, _lock_colours
from tests.figures import cut_off

SHIPPED = str(Path(__file__).parents[2] / "pretrained/heist_easy_customcnn_seed0.safetensors")
SMALL: dict[str, Any] = {"levels": [0, 1], "mazes": 8, "drawn": 1, "max_steps": 60, "device": "cpu"}


def test_a_competent_agent_follows_the_oracle_and_a_random_one_opens_nothing() -> None:
    report = VectorFields(SHIPPED, keys_and_locks=[(3, 1)], **SMALL).run()
    summary = report.summary
    assert summary["field/alignment"] > 0.7
    assert summary["keys/3_1/useful"] > summary["keys/3_1/random_agent_useful"]
    assert summary["keys/3_1/solved"] > summary["keys/3_1/random_agent_solved"]
    assert 0 <= summary["keys/3_1/useless_low"] <= summary["keys/3_1/useless"] <= summary["keys/3_1/useless_high"] <= 1
    assert "field/change" not in summary
    assert len(report.figures["fields"].axes) == 2
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert len(report.tables["keys_and_locks"].rows) == 6
    assert f"{summary['field/alignment']:.2f}" in report.pages["vector_fields"]
    assert set(report.films) == {"3_keys_1_locks"}
    assert "../films/3_keys_1_locks.gif" in report.pages["vector_fields"]


def test_an_edit_stands_beside_the_untouched_agent() -> None:
    changes = {"mazes": 2, "max_steps": 5, "levels": [0], "drawn": 0}
    study = VectorFields(SHIPPED, keys_and_locks=[(2, 2)], ablation="zero", tap="conv4a", **SMALL | changes)
    report = study.run()
    assert report.summary["field/change"] > 0.3
    assert report.summary["field/edited_alignment"] < report.summary["field/alignment"]
    assert len(report.figures["fields"].axes) == 3
    assert "With the edit" in report.pages["vector_fields"]
    assert not report.films, "none is drawn"
    assert "keys/2_2/edited_useful" in report.summary
    assert "keys/2_2/useless" not in report.summary, "every key opens something"


def test_what_is_filmed_is_what_was_counted() -> None:
    """The actions of all stages, taken again from the maze's beginning, fetch the same keys."""
    study = VectorFields(SHIPPED, **SMALL | {"mazes": 4})
    mazes = study._mazes((3, 1))
    course = study._play(study.agent, (), mazes, "test")
    assert any(len(fetched) > 1 for fetched in course.fetched), "more than one stage"
    last = {}
    for row, _, _, state in retrace([maze.to_bytes() for maze in mazes], course.actions, study.settings):
        last[row] = State.from_bytes(state)
    for row, fetched in enumerate(course.fetched):
        held = {colour for colour, has in enumerate(HeistPart.from_tail(last[row].tail).has_keys) if has}
        assert held <= fetched | set(_held_at_first(mazes[row]))
        assert len(fetched - held) <= 1, "but for what the last action takes"


def _held_at_first(maze: State) -> list[int]:
    return [colour for colour, has in enumerate(HeistPart.from_tail(maze.tail).has_keys) if has]


def test_mazes_have_the_keys_and_locks_asked_for() -> None:
    study = VectorFields(SHIPPED, keys_and_locks=[(3, 2)], **SMALL)
    for state in study._mazes((3, 2)):
        assert len(_key_colours(state)) == 3
        assert len(_lock_colours(state)) == 2


def test_what_cannot_be_meant_is_refused() -> None:
    for changes, match in [
        ({"keys_and_locks": [(1, 2)]}, "1 lock to as many"),
        ({"mazes": 0}, "must be at least 1"),
        ({"distribution_mode": "memory"}, "whole world"),
        ({"ablation": "zero"}, "need a tap"),
    ]:
        with pytest.raises(ValueError, match=match):
            VectorFields(SHIPPED, **SMALL | changes)
