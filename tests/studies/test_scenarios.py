import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from interpretability.episodes import first_states
from studies import Scenarios
from studies.scenario_gallery import gallery

LEVEL = 31


@pytest.mark.parametrize(("mode", "level"), [("easy", LEVEL), ("hard", 2)])
def test_every_builder_is_shown_and_the_oracle_solves_what_is_playable(mode, level):
    report = Scenarios(level, mode).run()
    table = report.tables["scenarios"]
    assert report.summary["scenarios/count"] == len(table.rows) == 99
    assert report.summary["scenarios/playable"] == report.summary["scenarios/solved"]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for cells in rows:
        assert (cells["solved"] == "yes") == (cells["why not"] == "")
    unchecked = {"one place", "a lock elsewhere"}  # their builders promise no solution
    promised = [cells for cells in rows if cells["group"] not in unchecked]
    assert len(promised) == 88
    assert sum(cells["solved"] == "yes" for cells in promised) >= 84
    for cells in promised:
        assert (cells["solved"] == "yes") == (cells["target"] != "none")
    assert min(report.figures["contact_sheet"].shape[:2]) > 1000


def test_every_state_of_the_gallery_comes_back_from_the_game_as_it_was():
    settings = EnvironmentSettings(num_threads=0)
    natural = first_states([LEVEL], settings)[0]
    exhibits = gallery(State.from_bytes(natural))
    states = [exhibit.state.to_bytes() for exhibit in exhibits]
    assert states[0] == natural, "nothing has touched the original"
    environment = VectorEnvironment(settings, len(states))
    environment.set_states(states)
    frames = environment.observe()[1].copy()
    assert environment.get_states() == states
    environment.close()
    assert len(np.unique(frames.reshape(len(frames), -1), axis=0)) >= 94, "a picture of its own for nearly each"


def test_mistakes_stop_before_any_work():
    with pytest.raises(ValueError, match=r"level 0 has .*: choose another level"):
        Scenarios(0)
    with pytest.raises(ValueError, match="at least 0"):
        Scenarios(-1)
