from collections.abc import Iterator

import pytest
import torch
from torch import nn

from interpretability import draw_written_by, written_by
from networks import BilinearImpala, ResidualImpala, TappedAgent
from networks.taps import Step


class TwoLayers(TappedAgent):
    """A convolution whose first channel reads a known pattern, and a fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.fc = nn.Linear(2 * 32 * 32, 5)
        self.policy = nn.Linear(5, 15)
        self.value = nn.Linear(5, 1)
        self.colours = torch.tensor([0.6, -0.8, 0.0])
        self.edge = torch.tensor([[1.0, 0.0, -1.0]] * 3) / 6**0.5
        with torch.no_grad():
            self.conv.weight[0] = 3.0 * self.colours[:, None, None] * self.edge
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "conv.pre", self.conv
        yield "conv", torch.relu
        yield "pool", nn.MaxPool2d(2)
        yield "fc.pre", lambda acts: self.fc(acts.flatten(1))
        yield "fc", torch.relu

    def heads(self) -> tuple[Step, Step]:
        return self.policy, self.value

    def config(self) -> dict[str, int | float | bool | str]:
        return {}


def test_a_planted_filter_is_found_with_its_channels() -> None:
    agent = TwoLayers().requires_grad_(False)
    (found,) = written_by(agent, "conv", torch.tensor([1.0, 0.0]))
    assert found.source == "frame"
    assert found.sizes[0] == pytest.approx(3.0, abs=1e-5)
    assert (found.sizes[1:] < 1e-5).all()
    torch.testing.assert_close(found.channels[0].float(), -agent.colours, atol=1e-5, rtol=0)  # largest positive
    torch.testing.assert_close(found.filters[0].float(), -agent.edge[:, [0, 2]], atol=1e-5, rtol=0)
    assert draw_written_by([found], "conv").dtype == torch.uint8


def test_the_pairs_make_up_the_weights() -> None:
    agent = TwoLayers()
    direction = torch.randn(5)
    (found,) = written_by(agent, "fc", direction)
    assert found.source == "pool"
    expected = (direction @ agent.fc.weight).view(2, 32, 32)
    torch.testing.assert_close(found.weights, expected)
    rebuilt = torch.einsum("r,rc,rhw->chw", found.sizes, found.channels, found.filters)
    torch.testing.assert_close(rebuilt.float(), expected, atol=1e-5, rtol=1e-4)
    (head,) = written_by(agent, "logits", torch.eye(15)[4])
    torch.testing.assert_close(head.weights, agent.policy.weight[4].detach())


def test_other_architectures() -> None:
    torch.manual_seed(0)
    bilinear, residual = BilinearImpala(), ResidualImpala()
    direction = torch.randn(32)
    left, right = written_by(bilinear, "conv4a", direction)
    for part, weights in zip((left, right), bilinear.conv4a.weight.split(32), strict=True):
        torch.testing.assert_close(part.weights, torch.einsum("o,ocij->cij", direction, weights))
    draw_written_by([left, right], "bilinear")
    (found,) = written_by(residual, "seq2.block1.conv2", direction)
    torch.testing.assert_close(found.weights, torch.einsum("o,ocij->cij", direction, residual.seq2.block1.conv2.weight))


@pytest.mark.parametrize("tap", ["seq1.pool", "seq1.block1", "seq1.block1.in"])
def test_a_tap_without_a_layer_is_refused(tap: str) -> None:
    with pytest.raises(ValueError, match="no layer with weights"):
        written_by(ResidualImpala(), tap, torch.randn(16))


def test_a_direction_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="the direction is"):
        written_by(TwoLayers(), "conv", torch.randn(3))
