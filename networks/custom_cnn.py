"""CustomCNN: the small Impala-style network of the published heist studies."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from networks.taps import Step, TappedAgent

PIXEL_MEAN = 0.6
PIXEL_STD = 0.2


class L2Pool(nn.Module):
    """2x2 root of the SUM of squares, stride 2: `nn.LPPool2d(2, 2, 2)`, fused into four element-wise passes.

    The tiny constant keeps the gradient finite where all four inputs are zero.
    """

    def forward(self, acts_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        return torch.sqrt(functional.avg_pool2d(acts_BCHW.square(), 2) * 4 + 1e-12)


def centre_input(conv: nn.Conv2d) -> None:
    """Fold (x - .6) / .2, about the mean and deviation of heist's pixels, into a convolution, in place."""
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight /= PIXEL_STD
        conv.bias -= PIXEL_MEAN * conv.weight.sum((1, 2, 3))


class CustomCNN(TappedAgent):
    """Five convolutions, four L2 pools, two hidden layers, policy and value heads: 363 216 parameters, 15 actions.

    Parameters are named as in published checkpoints (`fc3` is the policy head), which therefore load by name.

    Args:
        num_actions: procgen has 15.
        initialise_centred: initialise as if the input were centred, ((x - .6) / .2 folded into conv1a); the network
            itself still eats 0 to 1. Imitation learns far sooner so. Orthogonal weights, zero biases otherwise.
    """

    def __init__(self, num_actions: int = 15, initialise_centred: bool = True) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 16, 7, padding=3)
        self.conv2a = nn.Conv2d(16, 32, 5, padding=2)
        self.conv2b = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3a = nn.Conv2d(32, 32, 5, padding=2)
        self.conv4a = nn.Conv2d(32, 32, 5, padding=2)
        self.fc1 = nn.Linear(512, 256)
        self.fc2 = nn.Linear(256, 512)
        self.fc3 = nn.Linear(512, num_actions)
        self.value_fc = nn.Linear(512, 1)
        self.pool = L2Pool()
        self._num_actions = num_actions
        self._initialise_centred = initialise_centred
        self._initialise()
        self._find_taps()

    def _initialise(self) -> None:
        for name, layer in self.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = {"fc3": 0.01, "value_fc": 1.0}.get(name, 2**0.5)
                nn.init.orthogonal_(layer.weight, gain)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        if self._initialise_centred:
            centre_input(self.conv1a)

    def trunk(self) -> Iterator[tuple[str, Step]]:
        pools = {"conv1a": "pool1", "conv2b": "pool2", "conv3a": "pool3", "conv4a": "pool4"}
        for name in ("conv1a", "conv2a", "conv2b", "conv3a", "conv4a"):
            yield f"{name}.pre", getattr(self, name)
            yield name, functional.relu
            if name in pools:
                yield pools[name], self.pool
        yield "fc1.pre", lambda acts: self.fc1(acts.flatten(1))
        yield "fc1", functional.relu
        yield "fc2.pre", self.fc2
        yield "fc2", functional.relu

    def heads(self) -> tuple[Step, Step]:
        return self.fc3, self.value_fc

    def config(self) -> dict[str, int | float | bool | str]:
        return {"num_actions": self._num_actions, "initialise_centred": self._initialise_centred}
