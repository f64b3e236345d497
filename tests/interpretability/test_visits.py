import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import empty_room
from interpretability.episodes import first_states
from interpretability.visits import play_visits
from tests.planted import PlaceFollower, Pushed

EASY = EnvironmentSettings()


@pytest.fixture(scope="module")
def rooms() -> list[bytes]:
    bases = [State.from_bytes(data) for data in first_states(range(3), EASY)]
    return [empty_room(base, {"gem": (8, n)}, player=(2, 3)).to_bytes() for n, base in enumerate(bases)]


def test_follows_the_player_and_ends_with_the_gem(rooms):
    agent = PlaceFollower().eval()
    visits = play_visits(agent, rooms, settings=EASY, precision="fp32", num_environments=2)
    assert visits.gem.all()
    assert np.allclose(visits.ends, [(8.5, 0.5), (8.5, 1.5), (8.5, 2.5)])
    assert visits.reached(np.array([(8, 0), (8, 1), (8, 2)])).all()
    assert not visits.reached(np.array([(2, 8), (0, 0), (2, 8)])).any()
    environment = VectorEnvironment(EASY, 1)
    environment.set_states(rooms[:1])
    for place, action in zip(visits.paths[0], visits.actions[0], strict=False):
        player = State.from_bytes(environment.get_states()[0]).entities[0]
        assert (player["x"], player["y"]) == pytest.approx(tuple(place))
        environment.act(np.array([action]))
        environment.observe()
    environment.close()


def test_stops_within_one_cell_of_its_own_place(rooms):
    agent, cells = PlaceFollower().eval(), np.array([(7, 3), (2, 8), (2, 3)])
    edits = [("logits", Pushed(7))]
    visits = play_visits(agent, rooms, until=cells, edits=edits, settings=EASY, max_steps=30, num_environments=3)
    assert visits.reached(cells).tolist() == [True, False, True]
    assert 6.5 <= visits.ends[0][0] < 7.2
    assert len(visits.actions[1]) == 30
    assert len(visits.actions[2]) == 1
    with pytest.raises(ValueError, match="2 cells for 3 states"):
        play_visits(agent, rooms, until=cells[:2], settings=EASY)
