"""What is played at several returns, against the environment and counted by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from environments import EnvironmentSettings
from environments.heist import label_states
from interpretability import evaluate_splice, mean_ablation, play_episodes
from interpretability.asked_play import AskedPlay, confusion, delivered, play_asked, replays
from interpretability.episodes import Episodes
from interpretability.follower import Follower
from interpretability.replay import ActionLog, replay
from networks import CustomCNN, DecisionTransformer, TrajectoryWindow, load_network

SETTINGS = EnvironmentSettings(num_threads=0)


@pytest.fixture(scope="module")
def network() -> DecisionTransformer:
    """An untrained one that hears what it is asked for."""
    torch.manual_seed(0)
    made = DecisionTransformer(width=16, depth=2, heads=2, context=4)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if not name.startswith("encoder."):
                parameter.mul_(5)
    return made.eval()


def test_play_is_that_of_one_pass_over_each_episode(network: DecisionTransformer) -> None:
    """Two levels in company, longer than the context: what is played on are the logits of one banded pass over each."""
    log, logits = ActionLog(), {3: [], 4: []}

    def look(step) -> None:
        log(step)
        for level, row in zip(step.levels.tolist(), step.logits, strict=True):
            logits[level].append(row)

    play_episodes(network.asking(9.0), [3, 4], settings=SETTINGS, max_steps=11, precision="fp32", observer=look)
    for level in (3, 4):
        shown = replay(level, log.actions(level), SETTINGS)
        steps = len(shown.actions)
        assert steps == 11
        window = TrajectoryWindow(
            torch.from_numpy(shown.frames[None]),
            torch.from_numpy(shown.actions[None]),
            torch.tensor([[min(10.0, 9.0 / 0.98**t) for t in range(steps)]]),
            torch.arange(steps)[None],
            torch.ones(1, steps, dtype=torch.bool),
        )
        with torch.no_grad():
            whole = network(window).logits[0]
        torch.testing.assert_close(torch.stack(logits[level]), whole, rtol=1e-4, atol=1e-4)


def test_levels_are_played_alike_in_any_company(network: DecisionTransformer) -> None:
    logs = [ActionLog(), ActionLog()]
    for log, slots in zip(logs, (5, 2), strict=True):
        play_episodes(
            network, range(5), settings=SETTINGS, max_steps=9, num_environments=slots, precision="fp32", observer=log
        )
    assert [logs[0].actions(level) for level in range(5)] == [logs[1].actions(level) for level in range(5)]


def test_returns_are_played_from_the_highest_with_the_same_noise(network: DecisionTransformer) -> None:
    arguments = {"settings": SETTINGS, "max_steps": 12, "precision": "fp32"}
    played = play_asked(network, [0.0, 10.0, 5.0], [1, 2], **arguments)
    assert played.asked == (10.0, 5.0, 0.0)
    one = ActionLog()
    play_episodes(network.asking(5.0), [1, 2], observer=one, **arguments)
    assert played.logs[1].actions(2) == one.actions(2)
    heard = []
    for asked in (10.0, 0.0):
        play_episodes(network.asking(asked), [1], observer=lambda step: heard.append(step.logits), **arguments)
    assert (heard[0] - heard[12]).abs().max() > 1e-3, "it hears what it is asked for"
    for wrong in ([], [11.0], [-1.0]):
        with pytest.raises(ValueError, match="discounted returns of 0 to 10"):
            play_asked(network, wrong, [1], **arguments)


def test_what_is_delivered_is_discounted_by_hand() -> None:
    episodes = Episodes(
        np.arange(3), np.array([10, 0, 10], dtype=np.float32), np.array([1, 7, 100]),
        np.array([True, False, True]), np.array([False, True, False]),
    )  # fmt: skip
    np.testing.assert_allclose(delivered(episodes), [9.8, 0.0, 1.3261956])
    metrics = AskedPlay((10.0,), (episodes,), (ActionLog(),), True).metrics()
    assert metrics["dt/solved"] == metrics["dt/rtg_10/solved"] == pytest.approx(2 / 3)
    assert metrics["dt/delivered"] == pytest.approx((9.8 + 1.3261956) / 3)


def test_the_confusion_counts_each_action_by_the_only_shortest_way(network: DecisionTransformer) -> None:
    """Against a table by hand; procgen counts left-down, left, left-up, down, stay, up, right-down, right, right-up."""
    that_way = {0: (0, 2), 1: (0, 6), 2: (2, 8), 3: (6, 8)}
    played = play_asked(network, [10.0], [0, 1, 2], settings=SETTINGS, max_steps=20, precision="fp32")
    shown = replays(played, SETTINGS, 3)
    counts, rows = confusion(shown), np.zeros(4, dtype=int)
    for each in shown:
        labels = label_states(each.states)
        for direction, tied, action in zip(labels.direction, labels.direction_tied, each.actions, strict=True):
            if direction >= 0 and not tied:
                rows[direction] += 1
                column = {1: 0, 3: 1, 5: 2, 7: 3, 0: 5, 2: 5, 6: 5, 8: 5}.get(int(action), 6)
                column = 4 if action in that_way[int(direction)] else column
                counts[direction, column] -= 1
    assert rows.sum() > 0
    assert not counts.any()


def test_a_follower_sees_what_the_player_saw(network: DecisionTransformer) -> None:
    """Behind an edit that changes nothing, and over levels that begin while others go on."""
    follower = Follower(network, "fp32", edits=[("resid1.observation", nn.Identity())])
    met = []

    def look(step) -> None:
        torch.testing.assert_close(follower(step).logits, step.logits)
        met.append(len(step.slots))

    play_episodes(
        network, range(5), settings=SETTINGS, max_steps=7, num_environments=2, precision="fp32", observer=look
    )
    assert len(met) > 14


@pytest.mark.parametrize("tap", ["resid1.observation", "mlp2.observation"])
def test_splice_of_nothing_is_clean_play(network: DecisionTransformer, tap: str) -> None:
    result = evaluate_splice(
        network, tap, nn.Identity(), [1, 2, 3], settings=SETTINGS, max_steps=9, num_environments=2, precision="fp32"
    )
    metrics = result.metrics()
    np.testing.assert_array_equal(result.clean.returns, result.spliced.returns)
    assert metrics["splice/kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["splice/action_agreement"] == 1
    assert metrics["splice/zero_ablation_kl"] > 1e-3
    assert "splice/value_error" not in metrics, "it has no value head"


def test_the_mean_of_a_tap_is_over_the_steps_of_play(network: DecisionTransformer) -> None:
    log = ActionLog()
    arguments = {"settings": SETTINGS, "max_steps": 3, "precision": "fp32"}
    mean = mean_ablation(network, "resid1.return", [5, 6], **arguments).mean
    play_episodes(network, [5, 6], observer=log, **arguments)
    total = torch.zeros(16)
    for level in (5, 6):
        shown = replay(level, log.actions(level), SETTINGS)
        window = TrajectoryWindow(
            torch.from_numpy(shown.frames[None]), torch.from_numpy(shown.actions[None]), torch.full((1, 3), 10.0),
            torch.arange(3)[None], torch.ones(1, 3, dtype=torch.bool),
        )  # fmt: skip
        with torch.no_grad():
            total += network(window, record=["resid1.return"]).activations["resid1.return"][0].sum(0)
    torch.testing.assert_close(mean, total / 6, rtol=1e-4, atol=1e-5)


def test_a_network_without_memory_is_followed_as_it_is_run() -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    follower = Follower(agent, "fp32", record=["fc1"])

    def look(step) -> None:
        with torch.no_grad():
            alone = agent(torch.from_numpy(step.frames), record=["fc1"])
        torch.testing.assert_close(follower(step).activations["fc1"], alone.activations["fc1"])

    play_episodes(agent, [1, 2], settings=SETTINGS, max_steps=3, precision="fp32", observer=look)


def test_the_shipped_one_solves_most_levels() -> None:
    network = load_network(Path(__file__).parents[2] / "pretrained/heist_easy_decision_transformer.safetensors")
    played = play_asked(network, [10.0], range(12), settings=SETTINGS, max_steps=120)
    assert played.episodes[0].solved.mean() > 0.6
