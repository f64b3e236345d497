from dataclasses import replace

import pytest
import torch

from interpretability.asked_moves import AskedMoves
from interpretability.edit_search import (
    FoundEdit,
    change_norm,
    earliest,
    edit_size,
    peaks_inside,
    probability,
    search_edit,
    search_learned,
)
from networks.channel_edit import ChannelEdit, MixingEdit, RandomDirection, RepaintEdit, on_random_units
from tests.planted import PeakFollower


@pytest.fixture(scope="module")
def moves() -> AskedMoves:
    """Frames with a stronger pull to the left; asked is the way to the right."""
    torch.manual_seed(0)
    frames = torch.zeros(96, 64, 64, 3, dtype=torch.uint8)
    place = torch.empty(96, 4)
    for frame, box in zip(frames, place, strict=True):
        x, y = (8 * torch.randint(8, (2,))).tolist()
        frame[y : y + 8, x : x + 8, 0] = 200
        frame[x : x + 8, y : y + 8, 1] = 130
        box[:] = torch.tensor([y, x, y + 8, x + 8]) / 64
    wanted = torch.zeros(96, 15, dtype=torch.bool)
    wanted[:, 6:9] = True
    return AskedMoves(frames, wanted, place)


def test_the_planted_agent_is_redirected_by_what_is_found_and_by_no_control(moves):
    agent = PeakFollower().eval()
    assert probability(agent, "map", ChannelEdit(3), moves) < 0.01
    found = search_edit(agent, "map", moves, moves, unit_counts=(1, 2, 3), steps=60, learning_rate=0.1)
    tap, one = earliest({"map": found})
    assert tap == "map"
    assert one.size == 1
    assert one.edit.units.item() in (0, 1), "one of the two channels that matter"
    assert one.probability > 0.99
    with torch.no_grad():
        for control in (on_random_units(one.edit, 2), RandomDirection(one.edit, 0)):
            logits = agent(moves.frames, edits=[("map", control)]).logits
            assert logits is not None
            redirected = (logits.argmax(1) == 7).float().mean()
            assert redirected < 0.5, control


def test_refuses_taps_and_counts_that_cannot_be(moves):
    agent = PeakFollower().eval()
    with pytest.raises(ValueError, match="PeakFollower ends in"):
        search_edit(agent, "logits", moves, moves)
    with pytest.raises(ValueError, match="hold none from 1 to 3"):
        search_edit(agent, "map", moves, moves, unit_counts=(4,))


@pytest.mark.parametrize("fresh", [MixingEdit(3, 1), RepaintEdit(3, 2, kernel=1)], ids=["mixing", "repaint"])
def test_a_learned_edit_redirects_the_planted_agent(moves, fresh):
    agent = PeakFollower().eval()
    played = []

    def play(edit):
        played.append(probability(agent, "map", edit, moves))
        return moves

    (found,) = search_learned(
        agent, "map", {2: fresh}, moves, moves, steps=80, learning_rate=0.1, play=play, rounds=3, precision="fp32"
    )
    assert found.size == 2
    assert found.probability > 0.99
    assert found.norm > 0
    assert len(played) == 3
    with torch.no_grad():
        logits = agent(moves.frames, edits=[("map", RandomDirection(found.edit, 0))]).logits
        assert logits is not None
        assert (logits.argmax(1) == 7).float().mean() < 0.5
    with pytest.raises(ValueError, match="PeakFollower ends in"):
        next(search_learned(agent, "value", {1: MixingEdit(1, 1)}, moves, moves))


def test_an_edit_may_be_kept_to_where_the_asked_entity_lies(moves):
    """Dimming red, wherever it is, and raising green at its place redirect alike; only the second is near."""
    agent = PeakFollower().eval()
    acts = agent(moves.frames, record=("map",)).activations["map"].detach()
    outside = moves.outside(torch.arange(96), 8, 8)
    assert outside.sum() > 96 * 54
    shares = []
    for keep_outside in (0.0, 100.0):
        fresh = RepaintEdit(3, 2, kernel=1, seed=1)
        (found,) = search_learned(
            agent, "map", {2: fresh}, moves, moves, steps=300, learning_rate=0.1, rounds=0, keep_outside=keep_outside,
            precision="fp32",
        )  # fmt: skip
        assert found.probability > 0.95
        changed = found.edit.change(acts).detach().square().sum(1)
        shares.append(float(changed[outside].sum() / changed.sum()))
    assert shares[0] > 0.1
    assert shares[1] < 0.001


def test_peaks_are_those_of_a_plain_loop(moves):
    agent = PeakFollower().eval()
    edit = ChannelEdit(3)
    edit.scale.data[1], edit.shift.data[0] = 1.0, 0.25
    acts = agent(moves.frames, record=("map",)).activations["map"].detach()
    without, edited = peaks_inside(agent, "map", edit, moves)
    boxes = (8 * moves.place).long().tolist()
    cells = torch.stack([maps[:, top, left] for maps, (left, top, _, _) in zip(acts, boxes, strict=True)])
    torch.testing.assert_close(without, cells.mean(0))
    torch.testing.assert_close(edited, without * torch.tensor([1.0, 2.0, 1.0]) + torch.tensor([0.25, 0.0, 0.0]))


def test_the_smallest_edit_that_works_at_the_earliest_tap_is_taken():
    edits = [FoundEdit(ChannelEdit(1), size, 1.0, 0.1 * size) for size in (1, 2, 4)]
    assert earliest({"one": edits}, keep=0.5)[1].size == 2
    judged = [replace(one, reached=reached) for one, reached in zip(edits, (0.97, 0.5, 0.99), strict=True)]
    assert earliest({"one": judged})[1].size == 1
    weak = [replace(one, reached=0.5) for one in edits]
    tap, one = earliest({"first": weak, "second": judged[::-1], "third": judged})
    assert (tap, one.size) == ("second", 1), "the first tap has none that reaches 95 % of .99"
    assert earliest({"first": weak, "second": judged}, keep=0.5)[0] == "first"


def test_sizes_are_what_was_asked_for_and_norms_those_of_a_plain_loop(moves):
    agent = PeakFollower().eval()
    edits = [(ChannelEdit(3), 2), (MixingEdit(3, 5), 5), (RepaintEdit(3, 4, kernel=3), 4)]
    edits[0][0].shift.data[:2] = 1.0
    edits[1][0].write.data.normal_()
    edits[2][0].write.weight.data.normal_()
    acts = agent(moves.frames, record=("map",)).activations["map"].detach()
    for edit, size in edits:
        assert edit_size(edit) == size
        changed = edit.change(acts).detach()
        lengths = [changed[row, :, y, x].norm() ** 2 for row in range(len(acts)) for y in range(8) for x in range(8)]
        assert change_norm(agent, "map", edit, moves) == pytest.approx(float(torch.stack(lengths).mean().sqrt()))
