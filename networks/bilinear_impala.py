"""BilinearImpala: CustomCNN with products of two linear maps in place of its nonlinearities."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from networks.custom_cnn import centre_input
from networks.taps import Step, TappedAgent

GATE_STD = 0.25


class BilinearConv2d(nn.Conv2d):
    """Two convolutions of one input, whose outputs `multiply` multiplies: (W * x + b) (V * x + c), element by element.

    Both run as one convolution with twice the channels; `weight` and `bias` hold W over V and b over c. W begins normal
    with variance 1 / fan-in and b zero, which keeps the input's mean square m; V begins `GATE_STD` times so large and
    c one, which makes that m (1 + GATE_STD^2 m) by the gates. A new layer is thus a linear map that its gates bend a
    little. Without the offset seven layers would raise the input's scale to the power 128, and with gates of twice
    the size (m^2 outgrows m) some seeds already reach 10^5.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0) -> None:
        super().__init__(in_channels, 2 * out_channels, kernel_size, padding=padding)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        _initialise(self)


class BilinearLinear(nn.Linear):
    """Two linear maps of one input, whose outputs `multiply` multiplies; otherwise as `BilinearConv2d`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, 2 * out_features)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        _initialise(self)


@torch.no_grad()
def _initialise(layer: nn.Conv2d | nn.Linear) -> None:
    assert layer.bias is not None
    number = len(layer.bias) // 2
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    layer.weight[number:] *= GATE_STD
    nn.init.zeros_(layer.bias[:number])
    nn.init.ones_(layer.bias[number:])


def multiply(maps: Float[Tensor, "B C2 ..."]) -> Float[Tensor, "B C ..."]:
    """The product of the two halves of a bilinear layer's output."""
    left, right = maps.chunk(2, dim=1)
    return left * right


class BilinearImpala(TappedAgent):
    """CustomCNN whose ReLUs are products of two linear maps and whose L2 pools are means: 718 224 parameters.

    Bilinear convolutions and hidden layers in a reinforcement learner are Oozeer, Erisken and Rigg's (2024, arXiv
    2412.00944), who took them to a simplified residual IMPALA. Here they stand in CustomCNN, for two reasons. Taps have
    CustomCNN's names, sizes and receptive fields, so that a study or an autoencoder configured for one network runs on
    the other. (Its units are signed: studies say in their docstrings what that changes, and what needs units that are
    never below 0, such as non-negative factors, is for CustomCNN alone.) And without a residual stream each layer reads
    nothing but the layer before, so that one eigendecomposition (`interpretability.decompose`) says all that a channel
    is made of. The pools are means, as any other nonlinearity between the products would hide what they do: each layer
    is a quadratic function of the one before, the network a polynomial of the frame.

    Taps: `conv1a conv2a conv2b conv3a conv4a fc1 fc2` are the products, signed unlike CustomCNN's. `NAME.pre` has both
    maps, left over right: twice as many units, of which unit u of `NAME` is u times u + half.

    Args:
        num_actions: procgen has 15.
        initialise_centred: initialise as if the input were centred, as CustomCNN does.
    """

    rectifies = False

    def __init__(self, num_actions: int = 15, initialise_centred: bool = True) -> None:
        super().__init__()
        self.conv1a = BilinearConv2d(3, 16, 7, padding=3)
        self.conv2a = BilinearConv2d(16, 32, 5, padding=2)
        self.conv2b = BilinearConv2d(32, 32, 5, padding=2)
        self.conv3a = BilinearConv2d(32, 32, 5, padding=2)
        self.conv4a = BilinearConv2d(32, 32, 5, padding=2)
        self.fc1 = BilinearLinear(512, 256)
        self.fc2 = BilinearLinear(256, 512)
        self.fc3 = nn.Linear(512, num_actions)
        self.value_fc = nn.Linear(512, 1)
        self.pool = nn.AvgPool2d(2)
        self._num_actions = num_actions
        self._initialise_centred = initialise_centred
        self._initialise()
        self._find_taps()

    @torch.no_grad()
    def _initialise(self) -> None:
        for head, gain in ((self.fc3, 0.01), (self.value_fc, 1.0)):
            nn.init.orthogonal_(head.weight, gain)
            nn.init.zeros_(head.bias)
        if self._initialise_centred:
            centre_input(self.conv1a)

    def trunk(self) -> Iterator[tuple[str, Step]]:
        pools = {"conv1a": "pool1", "conv2b": "pool2", "conv3a": "pool3", "conv4a": "pool4"}
        for name in ("conv1a", "conv2a", "conv2b", "conv3a", "conv4a"):
            yield f"{name}.pre", getattr(self, name)
            yield name, multiply
            if name in pools:
                yield pools[name], self.pool
        yield "fc1.pre", lambda acts: self.fc1(acts.flatten(1))
        yield "fc1", multiply
        yield "fc2.pre", self.fc2
        yield "fc2", multiply

    def heads(self) -> tuple[Step, Step]:
        return self.fc3, self.value_fc

    def config(self) -> dict[str, int | float | bool | str]:
        return {"num_actions": self._num_actions, "initialise_centred": self._initialise_centred}
