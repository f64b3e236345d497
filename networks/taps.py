"""Taps and edits: the one interface through which a network is looked into.

A tap is a named place in a network, post-activation; `NAME.pre` is the same place before it. An edit is a module put
in at a tap that maps the tap's activation to another of the same shape: an ablation, a clamp, a probe direction and a
spliced autoencoder are all edits. Recording is part of `forward`, so that it is compiled with it; edits carry their
tensors in the module, so that edits of one class share one compilation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

Edit = tuple[str, nn.Module]
Step = Callable[[Tensor], Tensor]

ENCODER = "encoder."  # begins the names of a decision transformer's encoder, of its taps and of its weights


class AgentOutput(NamedTuple):
    """What one pass yields.

    Attributes:
        logits: action logits [B A] in float32, None if the pass ended at a tap; [B T A] of a window of T steps.
        value: value estimates [B] in float32, likewise; None from a network without a value head.
        activations: tap name to its recorded activation [B ...] ([B T ...]), after the edits at that tap.
    """

    logits: Float[Tensor, "B *T A"] | None
    value: Float[Tensor, " B"] | None
    activations: dict[str, Tensor]


class TapPass:
    """Recording and editing in one pass through a network.

    Args:
        record: taps whose activation is kept, after any edit there.
        edits: (tap, module) pairs, applied in order wherever their tap is computed.

    Attributes:
        activations: what was kept so far.

    Raises:
        ValueError: an autoencoder at another tap than it was made for, though the shapes may fit; an edit that changes
            the shape (but that one frame may become several).
    """

    def __init__(self, record: Sequence[str], edits: Sequence[Edit]) -> None:
        for tap, edit in edits:
            made_for = getattr(edit, "tap", None)
            if isinstance(made_for, str) and made_for not in ("", tap, f"{ENCODER}{tap}"):
                raise ValueError(f"this autoencoder is of {made_for}, not of {tap}: splice it in there")
        self._record, self._edits = record, edits
        self.activations: dict[str, Tensor] = {}

    def __call__(self, name: str, acts: Tensor) -> Tensor:
        """Pass a tap: its activation, edited."""
        for tap, edit in self._edits:
            if tap == name:
                edited = edit(acts)
                if edited.shape[1:] != acts.shape[1:] or len(acts) not in (1, len(edited)):
                    raise ValueError(
                        f"the edit at {tap} makes {tuple(edited.shape)} of {tuple(acts.shape)}: it must keep the shape"
                    )
                acts = edited
        if name in self._record:
            self.activations[name] = acts
        return acts

    def edits_at(self, name: str) -> bool:
        """Whether a tap is edited."""
        return any(tap == name for tap, _ in self._edits)

    def touches(self, name: str) -> bool:
        """Whether a tap is recorded or edited."""
        return name in self._record or self.edits_at(name)

    @property
    def complete(self) -> bool:
        """Whether all that is to be recorded has been."""
        return len(self.activations) == len(set(self._record))


class TappedNetwork(nn.Module, ABC):
    """A policy that can be looked into: it names its taps, records them and takes edits there.

    Attributes:
        taps: tap names in order of computation, with the shape each yields for one input: one frame, or one step of a
            window.
        rectifies: whether `NAME` is always the ReLU of `NAME.pre`, unit by unit.
        weights_hash: hash of the file the weights were loaded from; empty for a fresh network.
        metadata: what that file says of them.
    """

    taps: dict[str, tuple[int, ...]]
    rectifies: ClassVar[bool] = True
    weights_hash: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, to build the same network again."""

    @abstractmethod
    def player(self, slots: int, record: Sequence[str] = (), edits: Sequence[Edit] = ()) -> "Player":
        """What plays this network in so many environments; it remembers whatever the network needs of each."""

    @property
    def architecture(self) -> str:
        """The class name, as saved beside weights."""
        return type(self).__name__

    def untrained(self, seed: int) -> Self:
        """The same architecture with fresh weights drawn from a seed, on the CPU in eval mode: a control.

        They are not those that a training with this seed began with: of what an agent learnt some is in its first
        weights still. The global random state is left alone.
        """
        with torch.random.fork_rng():
            torch.manual_seed(2**31 + seed)
            return type(self)(**self.config()).eval()

    def check_taps(self, names: Sequence[str], inner: bool = False) -> None:
        """Refuse names that are no taps of this network.

        Args:
            names: to be looked at.
            inner: refuse what the network ends in too, the logits and the value.

        Raises:
            ValueError: names the tap and those that there are; also for one name that is not in a list.
        """
        if isinstance(names, str):
            raise ValueError(f"the tap {names!r} is given by itself: give a list, [{names!r}]")
        for name in names:
            if name not in self.taps:
                raise ValueError(f"{self.architecture} has no tap {name!r}: choose one of {', '.join(self.taps)}")
            if inner and name.split(".")[0] in ("logits", "value"):
                raise ValueError(f"the tap {name!r} is what {self.architecture} ends in: choose one inside the network")

    def check_edits(self, edits: Sequence[Edit]) -> None:
        """Raise ValueError for what is no (tap, module) pair, and for a name that is no tap of this network."""
        for edit in edits:
            if not (isinstance(edit, tuple | list) and len(edit) == 2 and isinstance(edit[0], str)):
                raise ValueError(f"edits hold {edit!r}, no pair of a tap and a module: give [('TAP', module), ...]")
        self.check_taps([tap for tap, _ in edits])

    def check_actions(self, count: int) -> None:
        """Raise ValueError if the network chooses among another number of actions than a game has."""
        (known,) = self.taps["logits"]
        if known != count:
            raise ValueError(
                f"this {self.architecture} chooses among {known} actions, the game has {count}: take one made for it"
            )


class Player(Protocol):
    """Plays a network, step by step, in the slots of a vectorised environment."""

    def begin(self, slots: Int[np.ndarray, " n"]) -> None:
        """An episode begins in each of these slots."""

    def __call__(self, frames: UInt8[Tensor, "n 64 64 3"], slots: Int[np.ndarray, " n"]) -> AgentOutput:
        """What the network makes of the next frame of each of these slots: rows in their order, no axis of time."""

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """These actions were taken on those frames."""


class MemorylessPlayer:
    """Plays a network that sees one frame and remembers nothing."""

    def __init__(self, agent: "TappedAgent", record: Sequence[str], edits: Sequence[Edit]) -> None:
        self._agent, self._record, self._edits = agent, tuple(record), tuple(edits)

    def begin(self, slots: Int[np.ndarray, " n"]) -> None:
        """Nothing is remembered."""

    def __call__(self, frames: UInt8[Tensor, "n 64 64 3"], slots: Int[np.ndarray, " n"]) -> AgentOutput:
        """The network's output for these frames."""
        return self._agent(frames, record=self._record, edits=self._edits)

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """Nothing is remembered."""


class TappedAgent(TappedNetwork):
    """A policy and value network on single frames, with taps and edits.

    A subclass names its trunk's steps in order (`trunk`) and its two heads (`heads`), and calls `_find_taps` at the end
    of its constructor.
    """

    @abstractmethod
    def trunk(self) -> Iterator[tuple[str, Step]]:
        """(tap name, step) from the input to the layer that both heads read; `NAME.pre` precedes `NAME`."""

    @abstractmethod
    def heads(self) -> tuple[Step, Step]:
        """The steps that yield logits [B A] and values [B 1] from the trunk's last tap."""

    def player(self, slots: int, record: Sequence[str] = (), edits: Sequence[Edit] = ()) -> Player:
        """A player without memory."""
        self.check_taps(record)
        self.check_edits(edits)
        return MemorylessPlayer(self, record, edits)

    def _find_taps(self) -> None:
        names = [name for name, _ in self.trunk()]
        with torch.no_grad():
            output = self(torch.zeros(1, 64, 64, 3), record=(*names, "logits", "value"))
        self.taps = {name: tuple(acts.shape[1:]) for name, acts in output.activations.items()}

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
            ValueError: frames of another shape or type, an unknown tap, an edit that changes the shape (but that one
                frame may become several).
        """
        _check_frames(frames, outputs)
        if hasattr(self, "taps"):
            self.check_taps(record)
            self.check_edits(edits)
        pass_tap = TapPass(record, edits)
        acts = frames.to(next(self.parameters()).dtype) / 255 if frames.dtype == torch.uint8 else frames
        acts = acts.permute(0, 3, 1, 2)  # NHWC memory seen as NCHW: channels_last without a copy
        for name, step in self.trunk():
            if not outputs and pass_tap.complete:
                return AgentOutput(None, None, pass_tap.activations)
            acts = pass_tap(name, step(acts))
        if not outputs and pass_tap.complete:
            return AgentOutput(None, None, pass_tap.activations)
        logits_head, value_head = self.heads()
        logits = pass_tap("logits", logits_head(acts).float())
        value = pass_tap("value", value_head(acts).float().squeeze(-1))
        return AgentOutput(logits, value, pass_tap.activations)


def _check_frames(frames: Tensor, whole: bool) -> None:
    """Refuse frames that a network would take for others, or would stop at in the middle.

    Args:
        frames: of 64 x 64 pixels; of any size where the pass is not whole, for convolutions take any.
        whole: up to logits and value.

    Raises:
        ValueError: says what they are and what they must be.
    """
    if not isinstance(frames, Tensor):
        raise ValueError(f"frames are a {type(frames).__name__}, not a tensor: pass torch.from_numpy(frames)")
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[-1] != 3 or (whole and shape[1:3] != (64, 64)):
        mends = {(64, 3): "pass frames[None] for a single one", (3, 64, 64): "pass frames.permute(0, 2, 3, 1)"}
        mend = mends.get(shape[1:], "pass frames as environments render them")
        raise ValueError(f"frames are of shape {shape}, not [B, 64, 64, 3] (height, width, colour): {mend}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"frames are {frames.dtype}: pass uint8 in 0 to 255, or floating point in 0 to 1")
