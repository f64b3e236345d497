from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from environments import EnvironmentSettings, State
from environments.heist import empty_room, label_states, shift_lock
from environments.heist.asked import label_asked
from interpretability.episodes import first_states
from networks import CustomCNN, save_weights
from studies import Patching
from studies.patching_mazes import SETS, make_pairs, position_sets
from studies.patching_moves import ESTIMATES, agreement, measure
from studies.retargeting_search import choice_mazes
from tests.figures import cut_off
from tests.planted import PeakFollower

EASY = EnvironmentSettings()


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


class OneCell(PeakFollower):
    """Goes left for red at one position of its map, and right for red at another; the rest is read by nobody."""

    places: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    def _logits(self, acts: Tensor) -> Tensor:
        logits = torch.full((len(acts), 15), -20.0)
        for action, (row, column) in zip((1, 7), self.places, strict=True):
            logits[:, action] = 20 * acts[:, 0, row, column]
        return logits


def test_what_a_planted_agent_reads_is_all_that_recovers() -> None:
    """One pair of frames alone, the entities' cells at the two positions that the agent reads."""
    pairs = make_pairs(range(6), EASY, distances=(2, 4), seed=0, num_actions=15)
    agent = OneCell().eval()
    pair = pairs[0]
    spots = [(int((pair.side - y - 0.5) / pair.side * 8), int((x + 0.5) / pair.side * 8)) for x, y in pair.cells[:2]]
    agent.places = (spots[0], spots[1])
    left, right = torch.zeros(2, 15, dtype=torch.bool)
    left[1], right[7] = True, True
    pair = pair._replace(towards=torch.stack([left, right]))
    moved = measure(agent, [pair], ["map"], units=True, controls=True, precision="fp32", progress="")["map"]
    shares = {name: moved.recovered(moved.sets[name]).value for name in SETS}
    assert shares["all"] == pytest.approx(1, abs=1e-4)
    assert shares["both"] == pytest.approx(1, abs=1e-4)
    assert shares["without_both"] == pytest.approx(0, abs=1e-4)
    assert shares["preferred"] + shares["other"] == pytest.approx(1, abs=1e-4)
    assert moved.recovered(moved.units[:, :, 0]).value == pytest.approx(1, abs=1e-4), "the channel that is read"
    assert moved.recovered(moved.units[:, :, 1]).value == pytest.approx(0, abs=1e-6)
    assert np.flatnonzero(np.abs(moved.blocks[0, 0]) > 1e-6).tolist() == sorted(r * 8 + c for r, c in spots)
    for how in ESTIMATES:  # what it makes of its map is linear
        for guessed, measured in zip(moved.estimated(how), (moved.blocks.reshape(1, 2, -1), moved.units), strict=True):
            np.testing.assert_allclose(guessed, measured, rtol=1e-3, atol=1e-4)
    seen = moved.map([pair], "preferred")
    height, width = seen.shape
    assert seen[height // 2, width // 2] == pytest.approx(shares["preferred"], abs=1e-4)
    assert moved.recovered(moved.controls["unrelated"]["all"][:, None]).value == pytest.approx(1, abs=1e-4), (
        "a pair alone is its own unrelated maze"
    )


def test_agreement_is_the_correlation_over_all_patches() -> None:
    drawn = np.random.default_rng(0).normal(size=(2, 30, 2, 5))
    one, other = drawn[0], drawn[0] + drawn[1]
    found = agreement(one, other)
    assert found.value == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    assert found.low < found.value < found.high
    assert agreement(one, -3 * one).value == pytest.approx(-1)


def test_pairs_exchange_the_choice_and_shift_a_lock_off_the_ways() -> None:
    pairs = make_pairs(range(6), EASY, distances=(2, 4), seed=0, num_actions=15)
    mazes = choice_mazes(first_states(range(6), EASY), 0, (2, 4))
    for pair, (maze, names) in zip(pairs, mazes, strict=True):
        assert not torch.equal(pair.frames[0], pair.frames[1])
        assert torch.equal(pair.frames[0], pair.frames[2]) != pair.shifted
        aside = shift_lock(maze, np.random.default_rng(0), names)
        for name in names:
            one, other = label_asked([maze], name), label_asked([aside], name)
            assert (one.directions, one.path_length) == (other.directions, other.path_length)
        changed = label_states([maze.to_bytes()]).cells != label_states([aside.to_bytes()]).cells
        assert changed.any(2).sum() == 1
        assert not (pair.towards[0] & pair.towards[1]).all()
        assert pair.towards.sum(1).tolist() == [3, 3]


def test_sets_lie_where_the_entities_are() -> None:
    pair = make_pairs(range(6), EASY, distances=(2, 4), seed=0, num_actions=15)[0]
    sets = position_sets(pair, 0, (1, 9, 9))
    exchanged = position_sets(pair, 1, (1, 9, 9))
    (x, y), (u, v), _ = pair.cells
    assert torch.nonzero(sets["preferred"][0]).tolist() == [[8 - y, x]]
    assert torch.nonzero(exchanged["preferred"][0]).tolist() == [[8 - v, u]]
    assert torch.equal(sets["without_both"], ~sets["both_around"])
    assert sets["sham"].sum() == sets["both_around"].sum()


def test_the_sham_keeps_off_the_entities_wherever_they_lie() -> None:
    for pair in make_pairs(range(12), EASY, distances=(2, 6), seed=0, num_actions=15):
        for side in (8, 16, 32):
            sets = position_sets(pair, 0, (1, side, side))
            assert sets["sham"].sum() == sets["both_around"].sum()
            assert not (sets["sham"] & sets["both"]).any()
            by_half = sets["both_around"].roll((side // 2, side // 2), (1, 2))
            assert torch.equal(sets["sham"], by_half) or (by_half & sets["both_around"]).any(), "no further than needed"


def test_reports_every_set_beside_its_controls(agent: str) -> None:
    report = Patching(agent, taps=("conv4a", "fc1"), num_levels=12, validation_levels=12, precision="fp32").run()
    summary = report.summary
    for tap in ("conv4a", "fc1"):
        for ending in ("", "_forth", "_back", "_random_agent"):
            assert summary[f"patching/{tap}/recovered{ending}"] == pytest.approx(1, abs=1e-2)
        assert np.isfinite(summary[f"patching/{tap}/recovered_unrelated_low"])
        for how in ESTIMATES:
            assert -1 <= summary[f"patching/{tap}/units_{how}_low"] <= summary[f"patching/{tap}/units_{how}"] <= 1
    assert not {"patching/fc1/both", "patching/fc1/blocks_path"} & summary.keys()
    assert np.isfinite(summary["patching/conv4a/blocks_path"])
    assert set(report.figures) == {"sets", "units", "estimates", "positions", "examples"}
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    rows = [row for row in report.tables["units"].rows if row[0] == "conv4a"]
    assert summary["patching/conv4a/unit"] == max(rows, key=lambda row: row[2])[1]
    assert summary["patching/conv4a/unit_random_agent"] == max(row[6] for row in rows)
    assert len(report.tables["units"].rows) == 32 + 256
    assert "random weights" in report.pages["patching"]


def test_refuses_what_cannot_be_paired(agent: str) -> None:
    with pytest.raises(ValueError, match="num_levels 10"):
        Patching(agent, num_levels=10)
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        Patching(agent, taps=("conv9",))
    with pytest.raises(ValueError, match="value has no units"):
        Patching(agent, taps=("conv4a", "value"))
    with pytest.raises(ValueError, match="no lock off the ways"):
        shift_lock(empty_room(State.from_bytes(first_states([0], EASY)[0])), np.random.default_rng(0), ["gem"])
