import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import choice_maze, corner_maze, draw_maze, label_states
from interpretability.asked_moves import asked_moves, own_moves
from interpretability.choices import play_choices, retrace
from interpretability.episodes import first_states
from networks import CustomCNN
from tests.planted import Pushed

EASY = EnvironmentSettings()
LEFT, DOWN, UP, RIGHT = ({a for a in range(9) if step(a) > 0} for step in (
    lambda a: 1 - a // 3, lambda a: 1 - a % 3, lambda a: a % 3 - 1, lambda a: a // 3 - 1,
))  # fmt: skip


@pytest.fixture(scope="module")
def base() -> State:
    return State.from_bytes(first_states([0], EASY)[0])


def test_moves_lead_along_the_way_from_everywhere(base):
    corner = corner_maze(base, "blue_key", legs=(2, 3))
    moves = asked_moves([corner], "blue_key", np.random.default_rng(0), EASY, 15, places=80)
    wanted = {frozenset(np.flatnonzero(row).tolist()) for row in moves.wanted.numpy()}
    assert wanted == {frozenset(RIGHT), frozenset(UP)}
    assert len(moves.frames) == 80
    assert len({frame.numpy().tobytes() for frame in moves.frames}) > 40
    doubled = moves + moves
    assert len(doubled.frames) == len(doubled.wanted) == len(doubled.place) == 160


def test_outside_is_where_another_colour_of_the_entity_changes_nothing(base):
    blue, red = (
        asked_moves([draw_maze(base, [f"*.P.{key[0]}.."])], key, np.random.default_rng(0), EASY, 15, places=12)
        for key in ("blue_key", "red_key")
    )
    assert torch.equal(blue.place, red.place)
    rows = torch.arange(12)
    changed = (blue.frames != red.frames).any(-1)
    assert changed.any((1, 2)).all()
    assert not (changed & blue.outside(rows, 64, 64, around=0)).any()
    cell = 64 / 9
    assert (~blue.outside(rows, 64, 64, around=0)).sum((1, 2)).float().mean() == pytest.approx(cell**2, rel=0.2)
    nearest = (~blue.outside(rows, 4, 4, around=0)).sum((1, 2))
    assert ((nearest >= 1) & (nearest <= 4)).all(), "no middle of so coarse a map lies in the cell"
    left, top, right, bottom = (64 * blue.place[3]).tolist()
    near = [
        [left - cell <= 4 * x + 2 <= right + cell and top - cell <= 8 * y + 4 <= bottom + cell for x in range(16)]
        for y in range(8)
    ]
    assert torch.equal(blue.outside(rows[3:4], 8, 16, around=1)[0], ~torch.tensor(near))


def test_places_behind_another_entity_are_left_out(base):
    """Asked is the gem, to whose right the key lies; the way to the right of the key is never walked."""
    maze = draw_maze(base, ["*.P.b.."])
    moves = asked_moves([maze], "gem", np.random.default_rng(0), EASY, 15, places=40)
    assert all(set(np.flatnonzero(row).tolist()) == LEFT for row in moves.wanted.numpy())
    assert len(moves.frames) == 40


def test_own_play_is_labelled_and_a_stuck_player_steered(base):
    """Pushed up along a corridor to the right: the first step may centre it, then it is held for good."""
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    maze = draw_maze(base, ["P...b"])
    up = own_moves(agent, [("logits", Pushed(5))], [maze], "blue_key", settings=EASY, max_steps=6)
    assert len(up.frames) == 6
    assert set(np.flatnonzero(up.wanted[0]).tolist()) == RIGHT
    assert up.wanted[-1].sum() == 1, "held: only steering counts"
    assert set(np.flatnonzero(up.wanted[-1]).tolist()) <= RIGHT
    right = own_moves(agent, [("logits", Pushed(7))], [maze], "blue_key", settings=EASY, max_steps=20)
    assert len(right.frames) < 20
    assert all(set(np.flatnonzero(row).tolist()) == RIGHT for row in right.wanted)


def test_a_way_is_traced_again_as_it_was(base):
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    states = [
        choice_maze(State.from_bytes(data), np.random.default_rng(n), entities=("blue_key", "gem")).to_bytes()
        for n, data in enumerate(first_states(range(5), EASY))
    ]
    played = play_choices(agent, states, settings=EASY, seed=1, max_steps=9)
    found = list(retrace(states, played.actions, EASY, num_environments=2))
    assert sorted({row for row, *_ in found}) == list(range(5))
    for number in range(5):
        environment = VectorEnvironment(EASY, 1)
        environment.set_states([states[number]])
        steps = [(step, frame, state) for row, step, frame, state in found if row == number]
        assert [step for step, *_ in steps] == list(range(len(played.actions[number])))
        for (_, frame, state), action in zip(steps, played.actions[number], strict=True):
            assert np.array_equal(environment.observe()[1][0], frame)
            assert np.array_equal(label_states([state]).position, label_states(environment.get_states()).position)
            environment.act(np.array([action]))
        environment.close()
    with pytest.raises(ValueError, match="one list a state"):
        next(retrace(states, [], EASY))
