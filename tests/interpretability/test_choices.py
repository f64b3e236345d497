import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import ENTITIES, choice_maze, cross_maze, label_states
from interpretability.choices import NOTHING, play_choices, play_to_end
from interpretability.episodes import first_states
from networks import CustomCNN
from networks.policy import sample_actions
from tests.planted import Pushed

EASY = EnvironmentSettings()


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


@pytest.fixture(scope="module")
def bases() -> list[State]:
    return [State.from_bytes(data) for data in first_states(range(6), EASY)]


def naive(agent, state: bytes, seed: int, max_steps: int) -> tuple[int, int]:
    """One state alone, judged by the labels of every frame."""
    environment = VectorEnvironment(EASY, 1)
    environment.set_states([state])
    generator = np.random.Generator(np.random.Philox(key=[seed, State.from_bytes(state).level_seed]))
    for step in range(1, max_steps + 1):
        frames = torch.from_numpy(environment.observe()[1]).expand(8, -1, -1, -1)
        with torch.no_grad():
            logits = agent(frames).logits[:1]
        action = sample_actions(logits, torch.from_numpy(generator.random((1, 15), dtype=np.float32)))
        environment.act(action.numpy())
        reward, _, first = environment.observe()
        if first[0] and reward[0] > 0:
            return ENTITIES.index("gem"), step
        held = label_states(environment.get_states()).held[0]
        if held.any():
            return int(held.argmax()), step
    return NOTHING, max_steps


def test_agrees_with_playing_each_state_alone(agent, bases):
    pairs = [("blue_key", "gem"), ("green_key", "red_key")]
    mazes = [
        choice_maze(base, np.random.default_rng(n), entities=pairs[n % 2], distances=(1, 1), spread=1)
        for n, base in enumerate(bases)
    ]
    states = [maze.to_bytes() for maze in mazes]
    played = play_choices(agent, states, settings=EASY, seed=4, num_environments=4, max_steps=30, precision="fp32")
    found = [naive(agent, state, 4, 30) for state in states]
    assert list(zip(played.touched.tolist(), played.steps.tolist(), strict=True)) == found
    assert len(set(played.touched.tolist())) > 1
    assert [len(actions) for actions in played.actions] == played.steps.tolist()


def test_says_which_is_touched_and_keeps_the_state_after_it(agent, bases):
    cross = cross_maze(bases[0], {"left": "blue_key", "right": "red_key", "up": "gem"}, length=2).to_bytes()
    for action, name in ((1, "blue_key"), (7, "red_key"), (5, "gem")):
        played = play_choices(agent, [cross], settings=EASY, edits=[("logits", Pushed(action))])
        assert ENTITIES[played.touched[0]] == name
        if name != "gem":
            assert label_states(played.after).held[0].tolist() == [name.startswith(c) for c in ("blue", "green", "red")]
    played = play_choices(agent, [cross], settings=EASY, edits=[("logits", Pushed(4))], max_steps=5)
    assert (played.touched[0], played.steps[0], played.after[0]) == (NOTHING, 5, b"")


def test_plays_on_to_the_gem(agent, bases):
    right = CustomCNN().eval()
    right.fc3.weight.data.zero_()
    right.fc3.bias.data = torch.nn.functional.one_hot(torch.tensor(7), 15) * 100.0
    rooms = [cross_maze(bases[0], {"right": "gem"}), cross_maze(bases[0], {"left": "gem"})]
    ended = play_to_end(right, [room.to_bytes() for room in rooms], settings=EASY, max_steps=40)
    assert ended.tolist() == [True, False]


def test_refuses_nothing_to_play(agent):
    with pytest.raises(ValueError, match="0 states"):
        play_choices(agent, [], settings=EASY)
