import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State
from environments.heist import corner_maze
from interpretability.edit_search import AskedMoves, asked_moves, probability, search_edit, search_mixing, smallest
from interpretability.episodes import first_states
from networks.channel_edit import ChannelEdit, RandomDirection, on_random_units
from tests.planted import PeakFollower


@pytest.fixture(scope="module")
def moves() -> AskedMoves:
    """Frames with a stronger pull to the left; asked is the way to the right."""
    torch.manual_seed(0)
    frames = torch.zeros(96, 64, 64, 3, dtype=torch.uint8)
    for frame in frames:
        x, y = (8 * torch.randint(8, (2,))).tolist()
        frame[y : y + 8, x : x + 8, 0] = 200
        frame[x : x + 8, y : y + 8, 1] = 130
    wanted = torch.zeros(96, 15, dtype=torch.bool)
    wanted[:, 6:9] = True
    return AskedMoves(frames, wanted)


def test_the_planted_agent_is_redirected_by_what_is_found_and_by_no_control(moves):
    agent = PeakFollower().eval()
    assert probability(agent, "map", ChannelEdit(3), moves) < 0.01
    found = search_edit(agent, "map", moves, moves, unit_counts=(1, 2, 3), steps=60, learning_rate=0.1)
    one = smallest(found)
    assert one.size == 1
    assert one.edit.units.item() in (0, 1), "one of the two channels that matter"
    assert one.probability > 0.99
    with torch.no_grad():
        for control in (on_random_units(one.edit, 2), RandomDirection(one.edit, 0)):
            logits = agent(moves.frames, edits=[("map", control)]).logits
            assert logits is not None
            redirected = (logits.argmax(1) == 7).float().mean()
            assert redirected < 0.5, control


def test_asked_moves_lead_along_the_way():
    settings = EnvironmentSettings()
    base = State.from_bytes(first_states([0], settings)[0])
    moves = asked_moves(
        [corner_maze(base, "blue_key", legs=(2, 3))], "blue_key", np.random.default_rng(0), settings, 15
    )
    right, up = [False] * 6 + [True] * 3 + [False] * 6, [a < 9 and a % 3 == 2 for a in range(15)]
    assert moves.wanted.tolist() == [right] * 2 + [up] * 3
    assert len({frame.numpy().tobytes() for frame in moves.frames}) == 5


def test_refuses_taps_and_counts_that_cannot_be(moves):
    agent = PeakFollower().eval()
    with pytest.raises(ValueError, match="no tap to retarget"):
        search_edit(agent, "logits", moves, moves)
    with pytest.raises(ValueError, match="hold none from 1 to 3"):
        search_edit(agent, "map", moves, moves, unit_counts=(4,))


def test_a_mixing_edit_of_one_direction_redirects_the_planted_agent(moves):
    agent = PeakFollower().eval()
    found = search_mixing(agent, "map", moves, moves, ranks=(1, 2, 9), steps=60, learning_rate=0.1)
    assert [one.size for one in found] == [1, 2], "the tap has three units"
    assert found[0].probability > 0.99
    assert found[0].norm > 0
    with torch.no_grad():
        logits = agent(moves.frames, edits=[("map", RandomDirection(found[0].edit, 0))]).logits
        assert logits is not None
        assert (logits.argmax(1) == 7).float().mean() < 0.5
    with pytest.raises(ValueError, match="no tap to retarget"):
        search_mixing(agent, "value", moves, moves)
