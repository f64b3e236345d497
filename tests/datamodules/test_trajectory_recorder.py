import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import TrajectorySource
from datamodules.frame_patches import PackedFrames
from datamodules.recorder import Rows
from datamodules.trajectory_recorder import TRAJECTORY_LABELS, TrajectoryRecorder
from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import label_states
from interpretability.replay import Replay, replay
from networks import CustomCNN, TappedAgent

EASY = EnvironmentSettings(num_threads=0)
ORACLE = TrajectorySource("oracle", "oracle")
NOISY = TrajectorySource("noisy", "oracle", epsilon=0.1, hold=4)
RANDOM = TrajectorySource("random", "random", hold=4)


def agent(seed: int = 0) -> CustomCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CustomCNN()


def recorder(source: TrajectorySource, player: TappedAgent | None = None, **changes) -> TrajectoryRecorder:
    arguments = {"settings": EASY, "max_steps": 60} | changes
    return TrajectoryRecorder(source, player, **arguments)


def record(made: TrajectoryRecorder, frames: int = 500, index: int = 0) -> Rows:
    rows = made.block(index, frames)
    made.close()
    return rows


def actions_of(rows: Rows) -> list[np.ndarray]:
    return np.split(rows["actions"].numpy(), np.cumsum(rows["episodes/steps"].numpy())[:-1])


def replays(rows: Rows) -> list[Replay]:
    return [
        replay(int(level), actions.tolist(), EASY)
        for level, actions in zip(rows["episodes/level"], actions_of(rows), strict=True)
    ]


@pytest.fixture(scope="module", params=["oracle", "noisy", "random", "agent"])
def rows(request: pytest.FixtureRequest) -> Rows:
    source = {"oracle": ORACLE, "noisy": NOISY, "random": RANDOM}.get(request.param)
    if source is None:
        return record(recorder(TrajectorySource("agent", "PATH"), agent()))
    return record(recorder(source))


def test_rendering_again_from_seed_and_actions_shows_what_was_recorded(rows: Rows) -> None:
    packed = PackedFrames.from_rows(rows)
    row = 0
    for episode, shown in enumerate(replays(rows)):
        steps = int(rows["episodes/steps"][episode])
        frames = np.empty((steps, 64, 64, 3), dtype=np.uint8)
        packed.read(episode, 0, frames)
        np.testing.assert_array_equal(frames, shown.frames)
        assert shown.solved == rows["episodes/solved"][episode]
        assert shown.ended != rows["episodes/cut"][episode]
        assert steps == 60 or not rows["episodes/cut"][episode]
        labels = label_states(shown.states)
        for name in TRAJECTORY_LABELS[:-1]:
            kept = rows[f"labels/{name}"][row : row + steps].numpy()
            np.testing.assert_allclose(kept, getattr(labels, name), rtol=1e-6, err_msg=name)
        moved = np.abs(np.diff(labels.position, axis=0)).max(1) >= 0.01
        stuck = rows["labels/stuck"][row : row + steps].numpy()
        assert not stuck[0]
        np.testing.assert_array_equal(stuck[1:], ~moved)
        row += steps
    assert row == len(rows["actions"])


def test_a_state_from_the_middle_goes_on_exactly_as_the_episode_did() -> None:
    """Procgen's own generator included: the whole saved state is the same, byte for byte."""
    rows = record(recorder(NOISY), 200)
    shown = max(replays(rows), key=lambda one: len(one.frames))
    middle = len(shown.frames) // 2
    environment = VectorEnvironment(EASY, 1, seed=99)
    environment.set_states([shown.states[middle]])
    for step in range(middle, len(shown.frames)):
        _, (frame,), _ = environment.observe()
        np.testing.assert_array_equal(frame, shown.frames[step])
        assert environment.get_states() == [shown.states[step]]
        environment.act(shown.actions[step : step + 1])
    environment.close()
    assert len(shown.frames) - middle > 10


def test_players_do_what_their_sources_say() -> None:
    rows = record(recorder(ORACLE))
    np.testing.assert_array_equal(rows["actions"], rows["labels/oracle_action"])
    assert rows["episodes/solved"].float().mean() > 0.5  # some levels take the oracle more than 60 steps
    rows = record(recorder(NOISY), 2_000)
    other = (rows["actions"] != rows["labels/oracle_action"]).float().mean()
    spell = 4 * 0.1 / (1 + 3 * 0.1)  # share of random moves, of which a ninth would be the oracle's too
    assert 0.6 * spell < other < 1.2 * spell
    greedy = TrajectorySource("agent", "PATH", temperature=0)
    rows = record(recorder(greedy, agent(), precision="fp32"), 200)
    frames = np.empty((int(rows["episodes/steps"][0]), 64, 64, 3), dtype=np.uint8)
    PackedFrames.from_rows(rows).read(0, 0, frames)
    with torch.no_grad():
        logits = agent()(torch.from_numpy(frames)).logits
    assert logits is not None
    # the same choice, but where two logits of this untrained agent are as good as equal
    chosen = logits.gather(1, rows["actions"][: len(frames), None].long()).squeeze(1)
    assert (logits.amax(1) - chosen).max() < 1e-5
    for temperature, spread in ((0.01, 2), (100.0, 8)):
        source = TrajectorySource("agent", "PATH", temperature=temperature)
        rows = record(recorder(source, agent(), precision="fp32"), 200)
        assert (len(rows["actions"].unique()) > spread) == (temperature > 1)


def test_random_moves_are_held() -> None:
    for actions in actions_of(record(recorder(RANDOM), 300)):
        whole = actions[: len(actions) // 4 * 4].reshape(-1, 4)
        assert (whole == whole[:, :1]).all()
        assert (actions < 9).all()


def test_blocks_have_about_as_many_frames_as_asked_for() -> None:
    for source, frames in ((ORACLE, 2_000), (RANDOM, 2_000), (ORACLE, 100)):
        counts: list[int] = []
        made = recorder(source)
        rows = made.block(0, frames, counts.append)
        made.close()
        assert frames - 60 <= len(rows["actions"]) <= 1.2 * frames + 60
        assert sum(counts) == frames
        assert made.frame_bytes() > 0
        made.close()


def test_a_block_depends_on_its_own_index_only() -> None:
    first, second = recorder(NOISY), recorder(NOISY)
    first.block(0, 200)
    again, alone = first.block(1, 200), second.block(1, 200)
    other = second.block(2, 200)
    first.close()
    second.close()
    assert all(torch.equal(again[name], alone[name]) for name in alone)
    assert not set(alone["episodes/level"].tolist()) & set(other["episodes/level"].tolist())


def test_levels_come_from_the_settings() -> None:
    settings = dataclasses.replace(EASY, start_level=77, num_levels=2)
    assert set(record(recorder(ORACLE, settings=settings))["episodes/level"].tolist()) == {77, 78}


def test_descriptions_differ_with_whatever_decides_the_episodes() -> None:
    same = repr(recorder(ORACLE).description())
    for source in (dataclasses.replace(ORACLE, share=0.1), dataclasses.replace(ORACLE, temperature=2.0)):
        assert repr(recorder(source).description()) == same
    played = TrajectorySource("agent", "PATH")
    found = {
        same,
        repr(recorder(NOISY).description()),
        repr(recorder(RANDOM).description()),
        repr(recorder(ORACLE, seed=1).description()),
        repr(recorder(ORACLE, max_steps=61).description()),
        repr(recorder(ORACLE, settings=EnvironmentSettings(distribution_mode="hard")).description()),
        repr(recorder(played, agent(1)).description()),
        repr(recorder(dataclasses.replace(played, temperature=0.5), agent()).description()),
        *(repr(recorder(played, agent(), precision=precision).description()) for precision in ("fp32", "bf16")),
    }
    assert len(found) == 10
    assert repr(recorder(dataclasses.replace(played, player="ELSEWHERE"), agent()).description()) in found


def test_a_folder_is_imported_but_not_one_that_is_named_like_a_player(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("random", "oracle", "dataset"):
        (tmp_path / name).mkdir()
    assert not RANDOM.imported
    assert not ORACLE.imported
    assert TrajectorySource("others", "dataset").imported


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="choose heist"):
        recorder(ORACLE, settings=EnvironmentSettings(game="maze"))
    for changes in ({"share": 0.0}, {"temperature": -1.0}, {"epsilon": 1.1}, {"hold": 0}):
        with pytest.raises(ValueError, match="source 'oracle'"):
            dataclasses.replace(ORACLE, **changes)


def test_only_an_agent_on_another_device_keeps_to_one_process() -> None:
    assert recorder(ORACLE, device="meta").forks
    assert recorder(RANDOM, device="meta").forks
    assert recorder(TrajectorySource("agent", "PATH"), agent()).forks
    assert not recorder(TrajectorySource("agent", "PATH"), agent(), device="meta").forks
