import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.cache import ActivationCache
from datamodules.recorder import PlaySettings, Recorder
from environments import TRAINING_START, EnvironmentSettings, State, VectorEnvironment
from environments.heist import inside_maze
from networks import AgentOutput, CustomCNN, DecisionTransformer, Player, TrajectoryWindow, load_agent

PLAY = PlaySettings(environments=4, steps=6, random_start=5)


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CustomCNN().eval()


@pytest.fixture
def outputs(agent: CustomCNN) -> Iterator[list[AgentOutput]]:
    """Everything that the agent yields, as it yields it."""
    seen: list[AgentOutput] = []
    handle = agent.register_forward_hook(lambda module, inputs, output: seen.append(output))
    yield seen
    handle.remove()


def recorder(agent: CustomCNN, taps: tuple[str, ...] = ("conv4a",), **changes: object) -> Recorder:
    arguments = {"play": PLAY, "precision": "bf16", **changes}
    settings = arguments.pop("settings", EnvironmentSettings())
    return Recorder(agent, settings, taps, **arguments)


def keys(rows: torch.Tensor) -> list[bytes]:
    return sorted(row.contiguous().view(torch.uint8).numpy().tobytes() for row in rows)


def test_maps_are_what_the_acting_pass_yields(agent: CustomCNN, outputs: list[AgentOutput]) -> None:
    made = recorder(agent, ("conv4a", "fc1"))
    rows = made.block(0)
    made.close()
    assert len(outputs) == PLAY.steps  # one pass a step: it acts and it is recorded
    for tap in ("conv4a", "fc1"):
        yielded = torch.cat([output.activations[tap] for output in outputs])
        assert rows[f"activations/{tap}"].dtype == yielded.dtype == torch.bfloat16
        yielded = yielded.permute(0, 2, 3, 1) if yielded.ndim == 4 else yielded
        assert keys(rows[f"activations/{tap}"]) == keys(yielded)


def test_an_agent_of_another_game_is_recorded_with_a_warning(agent: CustomCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "metadata", {"environment": {"game": "coinrun"}})
    with pytest.warns(UserWarning, match="trained on coinrun and plays heist"):
        recorder(agent)


def test_position_rows_are_distinct_positions_of_their_frames(agent: CustomCNN, outputs: list[AgentOutput]) -> None:
    made = recorder(agent, ("conv1a", "conv4a"), positions_per_frame=48, precision="fp32")
    rows = made.block(0)
    made.close()
    assert made.rows_per_frame == 48
    assert rows["levels"].shape == (24 * 48,)
    for tap, channels in (("conv1a", 16), ("conv4a", 32)):
        assert rows[f"activations/{tap}"].shape == (24 * 48, channels)
        yielded = torch.cat([output.activations[tap] for output in outputs]).permute(0, 2, 3, 1).flatten(0, 2)
        assert rows[f"activations/{tap}"].dtype == torch.float32
        assert set(keys(rows[f"activations/{tap}"])) <= set(keys(yielded))


def test_a_flat_tap_has_one_row_a_frame(agent: CustomCNN) -> None:
    made = recorder(agent, ("fc2",), positions_per_frame=64)
    assert made.block(0)["activations/fc2"].shape == (24, 512)
    made.close()


def test_a_block_depends_on_its_own_index_only(agent: CustomCNN) -> None:
    first, second = recorder(agent, frames=True), recorder(agent, frames=True)
    first.block(0)
    again, alone = first.block(1), second.block(1)
    other = second.block(2)
    first.close()
    second.close()
    assert all(torch.equal(again[name], alone[name]) for name in alone)
    assert not torch.equal(alone["frames"], other["frames"])
    assert not set(alone["levels"].tolist()) & set(other["levels"].tolist())


def test_a_short_block_has_as_many_rows_as_asked(agent: CustomCNN) -> None:
    made, counts = recorder(agent, positions_per_frame=8), []
    rows = made.block(0, 10, counts.append)
    made.close()
    assert len(rows["levels"]) == 80
    assert sum(counts) == 10


def test_every_third_step_is_that_of_a_block_that_keeps_all() -> None:
    """The play is the same, and what comes of it is known from all steps, not from those kept alone."""
    agent = load_agent("pretrained/heist_easy_customcnn_seed0.safetensors")
    play = dataclasses.replace(PLAY, environments=16, steps=40, temperature=0.0)
    whole = recorder(agent, (), labels=True, frames=True, play=play)
    thinned = recorder(agent, (), labels=True, frames=True, play=dataclasses.replace(play, steps=14, every=3))
    everything, some = whole.block(0), thinned.block(0)
    whole.close()
    thinned.close()
    counted = dict.fromkeys(keys(everything["frames"]), 0)
    assert len(some["levels"]) == 14 * 16
    assert set(keys(some["frames"])) <= set(counted)

    def described(rows: dict[str, torch.Tensor]) -> dict[bytes, tuple[int, int]]:
        frames = [frame.numpy().tobytes() for frame in rows["frames"]]
        outcome = zip(rows["labels/pursued"].tolist(), rows["labels/steps_to_pickup"].tolist(), strict=True)
        return dict(zip(frames, outcome, strict=True))

    known = described(everything)
    found = described(some)
    assert len({steps for _, steps in found.values()}) > 3
    assert all(known[frame] == outcome for frame, outcome in found.items())


def test_levels_come_from_the_settings_and_match_labels(agent: CustomCNN) -> None:
    settings = EnvironmentSettings(start_level=TRAINING_START + 7, num_levels=3)
    made = recorder(agent, settings=settings, labels=True)
    rows = made.block(0)
    made.close()
    assert set(rows["levels"].tolist()) <= set(range(TRAINING_START + 7, TRAINING_START + 10))
    assert torch.equal(rows["labels/level"], rows["levels"].long())
    assert rows["labels/cells"].shape == (24, 8, 2)


def test_inside_is_the_maze_of_the_row_s_level(agent: CustomCNN) -> None:
    made = recorder(agent, ("conv3a", "conv4a", "fc1"), inside=True)
    rows = made.block(0)
    made.close()
    environment = VectorEnvironment(EnvironmentSettings(), 1)
    for row in range(0, 24, 8):
        environment.play_levels([int(rows["levels"][row])])
        environment.observe()
        states = [State.from_bytes(environment.get_states()[0])]
        for tap, side in (("conv3a", 16), ("conv4a", 8)):
            assert np.array_equal(rows[f"inside/{tap}"][row].numpy(), inside_maze(states, side, side)[0])
    environment.close()
    assert "inside/fc1" not in rows


def test_other_games_have_no_inside_and_no_labels(agent: CustomCNN) -> None:
    maze = EnvironmentSettings(game="maze")
    made = recorder(agent, settings=maze, inside=True)
    assert set(made.block(0)) == {"activations/conv4a", "levels"}
    made.close()
    with pytest.raises(ValueError, match="set labels to false"):
        recorder(agent, settings=maze, labels=True)


def test_neighbouring_rows_are_strangers(agent: CustomCNN) -> None:
    made = recorder(agent, positions_per_frame=64, play=PlaySettings(environments=8, steps=8))
    levels = made.block(0)["levels"].numpy()
    made.close()
    same = np.mean(levels[1:] == levels[:-1])
    expected = np.sum((np.unique(levels, return_counts=True)[1] / len(levels)) ** 2)
    assert abs(same - expected) < 4 * np.sqrt(expected / len(levels))


def test_environments_begin_at_different_points(agent: CustomCNN) -> None:
    settings = EnvironmentSettings(num_levels=1)
    play = PlaySettings(environments=8, steps=1, random_start=24)
    made = recorder(agent, settings=settings, frames=True, play=play)
    assert len(set(keys(made.block(0)["frames"]))) > 2
    made.close()


def test_greedy_play_and_random_play(agent: CustomCNN) -> None:
    for changes in ({"temperature": 0.0}, {"epsilon": 1.0}):
        made = recorder(agent, play=PlaySettings(environments=2, steps=3, random_start=0, **changes))
        assert len(made.block(0)["levels"]) == 6
        made.close()


def test_global_generators_are_left_alone(agent: CustomCNN) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    made = recorder(agent, positions_per_frame=8)
    made.block(0, 8)
    made.close()
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


def test_bytes_are_known_in_advance(agent: CustomCNN) -> None:
    made = recorder(agent, frames=True, inside=True)
    assert made.frame_bytes() * 24 == sum(column.nbytes for column in made.block(0).values())
    made.close()


def test_what_cannot_be_is_refused(agent: CustomCNN) -> None:
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        recorder(agent, ("conv9",))
    with pytest.raises(ValueError, match="this CustomCNN chooses among 9 actions, the game has 15"):
        recorder(CustomCNN(num_actions=9))
    with pytest.raises(ValueError, match="frames go with whole maps"):
        recorder(agent, frames=True, positions_per_frame=4)
    with pytest.raises(ValueError, match=r"play\.steps 0"):
        PlaySettings(steps=0)
    with pytest.raises(ValueError, match=r"play\.epsilon 2"):
        PlaySettings(epsilon=2)


def test_descriptions_differ_with_whatever_decides_the_rows(agent: CustomCNN) -> None:
    def described(**changes: object) -> str:
        return repr(recorder(agent, **changes).description())

    same = described()
    assert described() == same
    assert described(settings=EnvironmentSettings(num_threads=7)) == same
    changes = [
        {"seed": 1},
        {"precision": "fp32"},
        {"positions_per_frame": 4},
        {"taps": ("conv3a",)},
        {"settings": EnvironmentSettings(distribution_mode="hard")},
        {"play": PlaySettings()},
        {"labels": True},
    ]
    described_changes = [described(**change) for change in changes]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        described_changes.append(repr(recorder(CustomCNN()).description()))
    assert len({same, *described_changes}) == len(changes) + 2


class Spy:
    """A player that notes what it is shown and told."""

    def __init__(self, player: Player) -> None:
        self.player, self.frames, self.actions, self.begun = player, [], [], []

    def begin(self, slots: np.ndarray) -> None:
        self.begun.append(slots.tolist())
        self.player.begin(slots)

    def __call__(self, frames: torch.Tensor, slots: np.ndarray) -> AgentOutput:
        self.frames.append(frames.clone())
        return self.player(frames, slots)

    def took(self, slots: np.ndarray, actions: np.ndarray) -> None:
        self.actions.append(torch.from_numpy(actions.copy()))
        self.player.took(slots, actions)


@pytest.mark.parametrize("every", [1, 2])
def test_a_network_that_remembers_is_shown_whole_episodes(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Its rows are those of one pass over each episode from its first frame, the random opening steps included; so are
    those of a network beside it, which is told the same actions.
    """
    torch.manual_seed(0)
    networks = [DecisionTransformer(width=16, depth=2, heads=2, context=4).eval() for _ in range(2)]
    spies: list[Spy] = []
    made_player = DecisionTransformer.player

    def player(self: DecisionTransformer, *arguments: object, **named: object) -> Spy:
        spies.append(Spy(made_player(self, *arguments, **named)))
        return spies[-1]

    monkeypatch.setattr(DecisionTransformer, "player", player)
    taps = ("resid1.observation", "mlp2.return", "encoder.conv4a")
    made = recorder(
        networks[0],
        taps,
        beside=networks[1],
        precision="fp32",
        frames=True,
        play=dataclasses.replace(PLAY, every=every),
    )
    rows = made.block(0)
    made.close()
    assert [spy.begun for spy in spies] == [[[0, 1, 2, 3], *[[]] * (5 + 5 * every)]] * 2, (
        "no episode ended: each began once"
    )
    for group, network, spy in zip(("activations", "beside"), networks, spies, strict=True):
        frames, actions = torch.stack(spy.frames, 1), torch.stack(spy.actions, 1)
        steps = PLAY.random_start + 1 + (PLAY.steps - 1) * every
        assert (frames.shape[1], actions.shape[1]) == (steps, steps - 1)
        window = TrajectoryWindow(
            frames,
            torch.cat([actions, torch.zeros(4, 1, dtype=torch.int64)], 1),
            torch.full((4, steps), 10.0),
            torch.arange(steps).expand(4, steps),
            torch.ones(4, steps, dtype=torch.bool),
        )
        with torch.no_grad():
            whole = network(window, record=taps).activations
        for tap in taps:
            expected = whole[tap][:, PLAY.random_start :: every].flatten(0, 1)
            found = rows[f"{group}/{tap}"]
            expected = expected.permute(0, 2, 3, 1) if found.ndim == 4 else expected
            expected, found = expected.flatten(1), found.flatten(1)
            nearest = torch.cdist(expected, found).min(1)
            assert nearest.indices.unique().numel() > 4
            torch.testing.assert_close(found[nearest.indices], expected, rtol=1e-3, atol=1e-4)
    assert made.description() != recorder(networks[0], taps, precision="fp32", frames=True).description()
    with pytest.raises(ValueError, match="beside goes with whole maps"):
        recorder(networks[0], taps, beside=networks[1], positions_per_frame=4)


def test_forked_processes_record_the_same(agent: CustomCNN, tmp_path: Path) -> None:
    """After the environment and the network ran here on all threads, as a check of the disk makes them do."""
    made = recorder(agent, ("conv4a", "fc1"), labels=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [made.block(index) for index in range(3)]
    torch.set_num_threads(2)
    try:
        cache = ActivationCache(tmp_path, "training", made, 72)
        cache.build()
    finally:
        torch.set_num_threads(threads)
    for expected, found in zip(alone, cache.open(), strict=True):
        assert set(expected) == {name for name in found if not name.startswith("sums/")}
        assert all(torch.equal(expected[name], found[name]) for name in expected)
