"""ResidualImpala: the residual network of the procgen papers."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from networks.custom_cnn import centre_input
from networks.taps import Step, TappedAgent


@torch.library.custom_op("networks::halving_max_pool", mutates_args=())
def _pool(acts: Tensor) -> tuple[Tensor, Tensor]:
    """A max pool and its indices by torch's own kernel: the compiler takes a custom operator as it is."""
    return functional.max_pool2d_with_indices(acts, [3, 3], [2, 2], [1, 1])


@torch.library.custom_op("networks::halving_max_pool_backward", mutates_args=())
def _pool_backward(grad: Tensor, acts: Tensor, indices: Tensor) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, acts, [3, 3], [2, 2], [1, 1], [1, 1], False, indices)


@_pool.register_fake
def _(acts: Tensor) -> tuple[Tensor, Tensor]:
    return functional.max_pool2d_with_indices(acts, [3, 3], [2, 2], [1, 1])


@_pool_backward.register_fake
def _(grad: Tensor, acts: Tensor, indices: Tensor) -> Tensor:
    return torch.empty_like(acts)


def _save(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> Tensor:
    return _pool_backward(grad, *ctx.saved_tensors)


_pool.register_autograd(_differentiate, setup_context=_save)


class HalvingMaxPool(nn.MaxPool2d):
    """A 3x3 max pool with stride 2, which keeps torch's own kernel when a network is compiled for a CPU.

    What torch 2.13 generates there for the gradient takes 3.4 times as long (137 instead of 40 ms for 128 maps of
    16 x 64 x 64), and made the compiled network slower to train than the eager one.
    """

    def __init__(self) -> None:
        super().__init__(3, stride=2, padding=1)

    def forward(self, acts_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        if torch.compiler.is_compiling() and acts_BCHW.device.type == "cpu" and torch.is_grad_enabled():
            return _pool(acts_BCHW)[0]
        return super().forward(acts_BCHW)


class ResidualBlock(nn.Module):
    """The two convolutions of a block, which reads the rectified stream and adds to it (`ResidualImpala.trunk`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)


class ResidualSequence(nn.Module):
    """A convolution, a pool that halves the map, and two residual blocks."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.pool = HalvingMaxPool()
        self.block1 = ResidualBlock(channels)
        self.block2 = ResidualBlock(channels)


class ResidualImpala(TappedAgent):
    """IMPALA's large network (Espeholt et al. 2018) as the procgen papers use it, without memory: 626 256 parameters.

    Three sequences of convolution, max pool and two residual blocks, a hidden layer of 256, policy and value heads.
    The count is for 15 actions and `width_scale` 1; Cobbe et al. (2020, arXiv 1912.01588) scale the convolutions'
    channels and nothing else. But for `initialise_centred`, initialised as their code is, through baselines'
    `build_impala_cnn` and `fc`: Glorot uniform weights in convolutions and hidden layer, orthogonal ones with gain 0.01
    for the policy and 1 for the value, zero biases. (TensorFlow pads its pool on the other side; nothing else differs.)

    Taps, for S in 1 to 3 and B in 1 to 2:

    - `seqS.conv`: the sequence's first convolution; no ReLU follows it.
    - `seqS.pool`: the residual stream as the sequence begins; `seqS.blockB`: the stream behind a block. An edit there
      reaches everything behind it.
    - `seqS.blockB.in`: the rectified stream as the block reads it. An edit there, or at its `.pre`, reaches that block
      alone and leaves the stream as it was.
    - `seqS.blockB.conv1`: the block's hidden layer; `seqS.blockB.conv2`: what the block adds to the stream.
    - `fc1.in`: the rectified stream as the hidden layer reads it; `fc1`, `logits`, `value`.

    `in`, `conv1`, `fc1.in` and `fc1` lie behind a ReLU and have a `.pre`.

    Args:
        num_actions: procgen has 15.
        width_scale: the convolutions have 16, 32 and 32 times so many channels; the papers use 1, 2 and 4.
        initialise_centred: initialise as if the input were centred, as CustomCNN does; the papers do not. Imitation
            learns far sooner so: after 49 152 frames of `configs/warm_start.yaml` with this network its accuracy was
            .59, and .25 without.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, num_actions: int = 15, width_scale: int = 1, initialise_centred: bool = True) -> None:
        if width_scale < 1:
            raise ValueError(f"width_scale {width_scale} leaves no channels: it must be at least 1")
        super().__init__()
        self.seq1 = ResidualSequence(3, 16 * width_scale)
        self.seq2 = ResidualSequence(16 * width_scale, 32 * width_scale)
        self.seq3 = ResidualSequence(32 * width_scale, 32 * width_scale)
        self.fc1 = nn.Linear(32 * width_scale * 8 * 8, 256)
        self.policy_fc = nn.Linear(256, num_actions)
        self.value_fc = nn.Linear(256, 1)
        self._num_actions = num_actions
        self._width_scale = width_scale
        self._initialise_centred = initialise_centred
        self._initialise()
        if initialise_centred:
            centre_input(self.seq1.conv)
        self._find_taps()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(self.policy_fc.weight, 0.01)
        nn.init.orthogonal_(self.value_fc.weight, 1.0)

    def trunk(self) -> Iterator[tuple[str, Step]]:
        for name, sequence in (("seq1", self.seq1), ("seq2", self.seq2), ("seq3", self.seq3)):
            yield f"{name}.conv", sequence.conv
            yield f"{name}.pool", sequence.pool
            yield from _block_steps(f"{name}.block1", sequence.block1)
            yield from _block_steps(f"{name}.block2", sequence.block2)
        yield "fc1.in.pre", lambda acts: acts
        yield "fc1.in", functional.relu
        yield "fc1.pre", lambda acts: self.fc1(acts.flatten(1))
        yield "fc1", functional.relu

    def heads(self) -> tuple[Step, Step]:
        return self.policy_fc, self.value_fc

    def config(self) -> dict[str, int | float | bool | str]:
        return {
            "num_actions": self._num_actions,
            "width_scale": self._width_scale,
            "initialise_centred": self._initialise_centred,
        }


def _block_steps(name: str, block: ResidualBlock) -> Iterator[tuple[str, Step]]:
    """The steps of one block. The stream passes by the branch in a list that lives for one pass of the network."""
    passing_by: list[Tensor] = []

    def enter(stream_BCHW: Tensor) -> Tensor:
        passing_by.append(stream_BCHW)
        return stream_BCHW

    yield f"{name}.in.pre", enter
    yield f"{name}.in", functional.relu
    yield f"{name}.conv1.pre", block.conv1
    yield f"{name}.conv1", functional.relu
    yield f"{name}.conv2", block.conv2
    yield name, lambda acts: passing_by.pop() + acts
