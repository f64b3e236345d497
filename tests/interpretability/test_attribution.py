import pytest
import torch

from interpretability.attribution import ALONG_THE_WAY, patch_estimates
from interpretability.patching import action_difference, channel_masks, patched_logits, record_taps
from networks import CustomCNN

LEFT, RIGHT = torch.zeros(2, 15, dtype=torch.bool)
LEFT[1], RIGHT[7] = True, True


@pytest.fixture
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def estimated(agent: CustomCNN, tap: str, frames: torch.Tensor, **settings: object) -> torch.Tensor:
    base, source = record_taps(agent, frames, [tap], "fp32")[tap]
    return patch_estimates(agent, tap, frames[0], base, source, LEFT, RIGHT, precision="fp32", **settings)


def difference(agent: CustomCNN, frames: torch.Tensor) -> torch.Tensor:
    return action_difference(agent.forward(frames).logits, LEFT, RIGHT).detach()


def test_where_the_rest_is_linear_estimates_are_what_patches_move(agent: CustomCNN, frames: torch.Tensor) -> None:
    source = record_taps(agent, frames, ["fc2"], "fp32")["fc2"][1]
    logits = patched_logits(agent, "fc2", frames[0], source, channel_masks(agent.taps["fc2"]), "fp32")
    measured = action_difference(logits, LEFT, RIGHT) - difference(agent, frames)[0]
    for points in ((0.0,), ALONG_THE_WAY):
        found = estimated(agent, "fc2", frames, points=points)
        torch.testing.assert_close(found, measured.float(), rtol=1e-3, atol=1e-6)


def test_along_the_way_the_parts_add_up_to_the_whole(agent: CustomCNN, frames: torch.Tensor) -> None:
    before, after = difference(agent, frames)
    at_base = estimated(agent, "conv3a", frames).sum()
    along = estimated(agent, "conv3a", frames, points=ALONG_THE_WAY).sum()
    assert float(along) == pytest.approx(float(after - before), rel=0.02)
    assert abs(along - (after - before)) < 0.2 * abs(at_base - (after - before)), "one gradient is not enough here"


def test_at_the_base_it_is_the_slope_of_a_small_patch(agent: CustomCNN, frames: torch.Tensor) -> None:
    base, source = record_taps(agent, frames, ["conv3a"], "fp32")["conv3a"]
    little = base + 1e-3 * (source - base)
    whole = torch.ones(1, 1, *agent.taps["conv3a"][1:], dtype=torch.bool)
    moved = action_difference(patched_logits(agent, "conv3a", frames[0], little, whole, "fp32"), LEFT, RIGHT)
    slope = (moved[0] - difference(agent, frames)[0]) / 1e-3
    assert float(estimated(agent, "conv3a", frames).sum()) == pytest.approx(float(slope), rel=0.05)


def test_leaves_no_gradients_behind_and_refuses_what_does_not_fit(agent: CustomCNN, frames: torch.Tensor) -> None:
    base, source = record_taps(agent, frames, ["conv4a"], "fp32")["conv4a"]
    estimated(agent, "conv4a", frames)
    assert all(parameter.grad is None for parameter in agent.parameters())
    with pytest.raises(ValueError, match="must be activations of conv3a"):
        patch_estimates(agent, "conv3a", frames[0], base, source, LEFT, RIGHT)
    with pytest.raises(ValueError, match="name one at least"):
        patch_estimates(agent, "conv4a", frames[0], base, source, LEFT, RIGHT, points=())
