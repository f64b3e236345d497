import pytest
import torch
from torch import Tensor, nn

from interpretability.receptive_fields import ReceptiveField, receptive_field
from networks import CustomCNN


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN()


def analytic(layers: list[tuple[int, int]]) -> tuple[int, int, int]:
    """Size, stride and offset after layers of (kernel, stride), convolutions padded by half their kernel."""
    size, stride, offset = 1, 1, 0
    for kernel, step in layers:
        size += (kernel - 1) * stride
        offset -= (kernel // 2 if step == 1 else 0) * stride
        stride *= step
    return size, stride, offset


POOL = (2, 2)
LAYERS = {
    "conv1a": [(7, 1)],
    "conv2b.pre": [(7, 1), POOL, (5, 1), (5, 1)],
    "conv4a": [(7, 1), POOL, (5, 1), (5, 1), POOL, (5, 1), POOL, (5, 1)],
}


@pytest.mark.parametrize("tap", LAYERS)
def test_boxes_follow_from_kernels_and_strides(agent: CustomCNN, tap: str) -> None:
    size, stride, offset = analytic(LAYERS[tap])
    assert receptive_field(agent, tap) == ReceptiveField((size, size), (stride, stride), (offset, offset))


def test_flat_taps_see_everything(agent: CustomCNN) -> None:
    assert receptive_field(agent, "fc1") is None
    with pytest.raises(ValueError, match="no tap"):
        receptive_field(agent, "fc9")


def test_the_box_is_what_moves_the_activation() -> None:
    """To the pixel: with positive weights every pixel of the box has a gradient, and none outside."""
    agent = CustomCNN()
    for parameter in agent.parameters():
        nn.init.constant_(parameter, 0.01)
    field = receptive_field(agent, "conv2b")
    assert field is not None
    for y, x in ((0, 0), (16, 9), (31, 31)):
        frames = torch.full((1, 64, 64, 3), 0.5, requires_grad=True)
        acts = agent(frames, record=("conv2b",), outputs=False).activations["conv2b"]
        (gradient,) = torch.autograd.grad(acts[0, 0, y, x], frames)
        seen = gradient[0].abs().sum(-1) > 0
        top, left, bottom, right = field.box(y, x)
        expected = torch.zeros(64, 64, dtype=torch.bool)
        expected[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
        assert seen.equal(expected)


def padded(frame: Tensor, border: int) -> Tensor:
    return nn.functional.pad(frame.permute(2, 0, 1), [border] * 4, value=9).permute(1, 2, 0)


def test_patches_are_cut_to_the_pixel_and_padded() -> None:
    frame = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    field = ReceptiveField((24, 20), (2, 4), (-11, -7))
    for y, x in ((0, 0), (16, 8), (31, 15), (0, 15)):
        top, left, bottom, right = field.box(y, x)
        patch = field.cut(frame, y, x, fill=(9, 9, 9))
        assert patch.shape == (24, 20, 3)
        assert patch.equal(padded(frame, 40)[top + 40 : bottom + 40, left + 40 : right + 40])


def test_a_convolution_over_the_tap_sees_more() -> None:
    field = ReceptiveField((7, 7), (2, 2), (-3, -3))
    assert field.widened(1) == field
    assert field.widened(3) == ReceptiveField((11, 11), (2, 2), (-5, -5))
