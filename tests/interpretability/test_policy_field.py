import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State
from environments.heist import draw_maze, label_states, place_player
from interpretability.episodes import first_states
from interpretability.policy_field import policy_field
from networks import CustomCNN
from tests.planted import Pushed

SETTINGS = EnvironmentSettings()


@pytest.fixture(scope="module")
def state() -> State:
    return State.from_bytes(first_states([3], SETTINGS)[0])


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


def test_every_free_cell_is_asked_and_moves_are_expectations(agent: CustomCNN, state: State) -> None:
    maze = draw_maze(state, ["b...*", ".###.", "..P.."])
    field = policy_field(agent, maze, SETTINGS, precision="fp32")
    assert len(field.cells) == 12 - 2  # all but the key's and the gem's
    by_hand = np.zeros_like(field.moves)
    for action in range(9):
        by_hand += field.probabilities[:, [action]] * np.array([[action // 3 - 1, action % 3 - 1]])
    np.testing.assert_allclose(field.moves, by_hand, atol=1e-6)
    np.testing.assert_allclose(field.probabilities.sum(1), 1, atol=1e-5)
    labels = label_states([place_player(maze, tuple(cell)).to_bytes() for cell in field.cells.tolist()])
    assert np.array_equal(np.abs(field.oracle).sum(1) == 0, labels.direction_tied | (labels.direction < 0))


@pytest.mark.parametrize(
    ("action", "move"), [(1, (-1, 0)), (3, (0, -1)), (5, (0, 1)), (7, (1, 0)), (8, (1, 1)), (9, (0, 0))]
)
def test_edits_count_and_arrows_point_as_procgen_moves(
    agent: CustomCNN, state: State, action: int, move: tuple[int, int]
) -> None:
    field = policy_field(agent, state, SETTINGS, edits=[("logits", Pushed(action))], precision="fp32")
    np.testing.assert_allclose(field.moves, np.broadcast_to(move, field.moves.shape), atol=1e-4)
    lined = np.nan_to_num((field.oracle @ np.array(move)) / max(np.linalg.norm(move), 1))
    known = np.abs(field.oracle).sum(1) > 0
    np.testing.assert_allclose(field.alignment()[known], lined[known], atol=1e-4)
    assert np.isnan(field.alignment()[~known]).all()
