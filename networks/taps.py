"""Taps and edits: the one interface through which a network is looked into.

A tap is a named place in a network, post-activation; `NAME.pre` is the same place before it. An edit is a module put
in at a tap that maps the tap's activation to another of the same shape: an ablation, a clamp, a probe direction and a
spliced autoencoder are all edits. Recording is part of `forward`, so that it is compiled with it; edits carry their
tensors in the module, so that edits of one class share one compilation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

Edit = tuple[str, nn.Module]
Step = Callable[[Tensor], Tensor]


class AgentOutput(NamedTuple):
    """What one pass yields.

    Attributes:
        logits: action logits [B A] in float32, None if the pass ended at a tap.
        value: value estimates [B] in float32, likewise.
        activations: tap name to its recorded activation [B ...], after the edits at that tap.
    """

    logits: Float[Tensor, "B A"] | None
    value: Float[Tensor, " B"] | None
    activations: dict[str, Tensor]


class TappedAgent(nn.Module, ABC):
    """A policy and value network on frames, with taps and edits.

    A subclass names its trunk's steps in order (`trunk`) and its two heads (`logits_head`, `value_head`), and calls
    `_find_taps` at the end of its constructor.

    Attributes:
        taps: tap names in order of computation, with the shape each yields for one input.
        rectifies: whether `NAME` is always the ReLU of `NAME.pre`, unit by unit.
        weights_hash: hash of the file the weights were loaded from; empty for a fresh network.
        metadata: what that file says of them.
    """

    taps: dict[str, tuple[int, ...]]
    rectifies: ClassVar[bool] = True
    weights_hash: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def trunk(self) -> Iterator[tuple[str, Step]]:
        """(tap name, step) from the input to the layer that both heads read; `NAME.pre` precedes `NAME`."""

    @abstractmethod
    def heads(self) -> tuple[Step, Step]:
        """The steps that yield logits [B A] and values [B 1] from the trunk's last tap."""

    @abstractmethod
    def config(self) -> dict[str, int | float | bool | str]:
        """The constructor's arguments, to build the same network again."""

    @property
    def architecture(self) -> str:
        """The class name, as saved beside weights."""
        return type(self).__name__

    def _find_taps(self) -> None:
        names = [name for name, _ in self.trunk()]
        with torch.no_grad():
            output = self(torch.zeros(1, 64, 64, 3), record=(*names, "logits", "value"))
        self.taps = {name: tuple(acts.shape[1:]) for name, acts in output.activations.items()}

    def check_taps(self, names: Sequence[str]) -> None:
        """Raise ValueError for a name that is no tap of this network."""
        for name in names:
            if name not in self.taps:
                raise ValueError(f"{self.architecture} has no tap {name!r}: choose one of {', '.join(self.taps)}")

    def forward(
        self,
        frames: Shaped[Tensor, "B 64 64 3"],
        record: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        outputs: bool = True,
    ) -> AgentOutput:
        """Run the network.

        Args:
            frames: uint8 in 0 to 255, or floating point in 0 to 1; height, width, colour.
            record: taps whose activation is returned, after any edit there.
            edits: (tap, module) pairs, applied in order wherever their tap is computed.
            outputs: False stops at the deepest tap of `record`, without logits and value.

        Raises:
            ValueError: an unknown tap.
        """
        if hasattr(self, "taps"):
            self.check_taps([*record, *(tap for tap, _ in edits)])
        activations: dict[str, Tensor] = {}

        def pass_tap(name: str, acts: Tensor) -> Tensor:
            for tap, edit in edits:
                if tap == name:
                    acts = edit(acts)
            if name in record:
                activations[name] = acts
            return acts

        acts = frames.float() / 255 if frames.dtype == torch.uint8 else frames
        acts = acts.permute(0, 3, 1, 2)  # NHWC memory seen as NCHW: channels_last without a copy
        for name, step in self.trunk():
            if not outputs and len(activations) == len(set(record)):
                return AgentOutput(None, None, activations)
            acts = pass_tap(name, step(acts))
        if not outputs and len(activations) == len(set(record)):
            return AgentOutput(None, None, activations)
        logits_head, value_head = self.heads()
        logits = pass_tap("logits", logits_head(acts).float())
        value = pass_tap("value", value_head(acts).float().squeeze(-1))
        return AgentOutput(logits, value, activations)
