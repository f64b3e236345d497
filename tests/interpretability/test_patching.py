import numpy as np
import pytest
import torch

from interpretability.patching import (
    action_difference,
    aligned,
    block_masks,
    channel_masks,
    near,
    patched_logits,
    record_taps,
)
from networks import CustomCNN, ResidualImpala
from tests.planted import PeakFollower


def frames(count: int) -> torch.Tensor:
    drawn = torch.randint(0, 256, (count, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    return drawn.to(torch.uint8)


@pytest.mark.parametrize("tap", ["conv3a", "fc1"])
def test_patches_are_those_of_a_loop_over_masks(tap: str) -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    base, other = frames(2)
    shape = agent.taps[tap]
    masks = torch.rand(5, shape[0], *shape[1:], generator=torch.Generator().manual_seed(1)) < 0.5
    acts = record_taps(agent, torch.stack([base, other]), [tap], "fp32")[tap]

    class Put(torch.nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def forward(self, found):
            changed = found.clone()
            changed[0][self.mask] = acts[1][self.mask]
            return changed

    expected = [agent.forward(base[None], edits=[(tap, Put(mask))]).logits[0] for mask in masks]
    found = patched_logits(agent, tap, base, acts[1], masks, "fp32")
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tap", ["seq1.block1", "seq3.block2.in"])
def test_a_whole_tap_of_a_chain_is_the_other_frame_and_a_branch_is_not(tap: str) -> None:
    torch.manual_seed(0)
    agent = ResidualImpala().eval()
    base, other = frames(2)
    acts = record_taps(agent, torch.stack([base, other]), [tap], "fp32")[tap]
    masks = torch.ones(1, 1, *agent.taps[tap][1:], dtype=torch.bool)
    found = patched_logits(agent, tap, base, acts[1], masks, "fp32")
    clean = agent.forward(torch.stack([base, other])).logits
    assert torch.allclose(found[0], clean[1], atol=1e-6) == (not tap.endswith("in"))
    none = patched_logits(agent, tap, base, acts[1], ~masks, "fp32")
    torch.testing.assert_close(none[0], clean[0].detach(), rtol=1e-4, atol=1e-6)


def test_only_the_planted_peaks_position_and_channel_carry_the_choice() -> None:
    agent = PeakFollower().eval()
    red = torch.zeros(64, 64, 3, dtype=torch.uint8)
    red[8:16, 24:32, 0] = 255
    empty = torch.zeros(64, 64, 3, dtype=torch.uint8)
    source = record_taps(agent, red[None], ["map"], "fp32")["map"][0]
    blocks = patched_logits(agent, "map", empty, source, block_masks(agent.taps["map"]), "fp32")[:, 1]
    assert torch.nonzero(blocks > 1).tolist() == [[1 * 8 + 3]]
    channels = patched_logits(agent, "map", empty, source, channel_masks(agent.taps["map"]), "fp32")[:, 1]
    assert torch.nonzero(channels > 1).tolist() == [[0]]


def test_blocks_cover_each_position_once() -> None:
    for shape in ((3, 64, 64), (3, 8, 8), (3, 20, 20)):
        masks = block_masks(shape, 16)
        assert torch.equal(masks.sum(0)[0], torch.ones(shape[1:], dtype=torch.long))
        assert len(masks) <= 256
    assert len(block_masks((3, 8, 8))) == 64


def test_near_is_the_cells_own_pixels_and_never_nothing() -> None:
    found = near((2.5, 0.5), 0.5, 8, (1, 16, 16))
    expected = torch.zeros(1, 16, 16, dtype=torch.bool)
    expected[0, 14:, 4:6] = True  # y upwards: the lowest cell is the last rows
    assert torch.equal(found, expected)
    for x in range(9):
        assert near((x + 0.5, 0.5), 0.5, 9, (1, 4, 4)).any()


def test_alignment_moves_each_maps_own_centre_into_the_middle() -> None:
    values = np.arange(18.0).reshape(2, 3, 3)
    centres = np.array([[0, 2], [1, 1]])
    moved = aligned(values, centres)
    assert moved.shape == (2, 5, 5)
    assert moved[:, 2, 2].tolist() == [values[0, 0, 2], values[1, 1, 1]]
    assert np.isnan(moved[0, 1]).all(), "above the first row there is nothing"
    assert np.isfinite(moved).sum() == 18


def test_difference_of_actions_leaves_out_those_that_go_both_ways() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0, 9.0])
    towards, other = torch.tensor([1, 1, 0, 1], dtype=torch.bool), torch.tensor([0, 0, 1, 1], dtype=torch.bool)
    p = logits.softmax(0)
    assert action_difference(logits, towards, other).item() == pytest.approx(float(((p[0] + p[1]) / p[2]).log()))


def test_refuses_masks_that_do_not_fit() -> None:
    agent = CustomCNN().eval()
    with pytest.raises(ValueError, match="do not fit conv4a"):
        patched_logits(agent, "conv4a", frames(1)[0], torch.zeros(32, 8, 8), torch.ones(1, 1, 4, 4, dtype=torch.bool))
