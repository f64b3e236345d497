"""Running a network on the frames of many slots no more often than it takes."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from interpretability.row_edits import RowEdit
from networks.padding import SMALLEST_BATCH, padded_batch
from networks.precision import Precision, autocast
from networks.taps import AgentOutput, Edit, TappedAgent, TappedNetwork


class PlayedOutputs(Protocol):
    """Logits and values of the slots that play, step by step."""

    def begin(self, slots: Int[np.ndarray, " n"], trials: Int[np.ndarray, " n"] | None = None) -> None:
        """An episode begins in each of these slots; `trials` are those of the edits by row (see `RowEdit`)."""

    def __call__(
        self, frames: UInt8[np.ndarray, "N 64 64 3"], slots: Int[np.ndarray, " n"]
    ) -> tuple[Float[Tensor, "n A"], Float[Tensor, " n"]]:
        """Float32 logits and values, on the CPU, of the slots asked for; values are NaN where the network has none."""

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """These actions were taken there."""


def played_outputs(network: TappedNetwork, edits: Sequence[Edit], slots: int, precision: Precision) -> PlayedOutputs:
    """What plays a network in so many slots: cheaper where it remembers nothing."""
    if isinstance(network, TappedAgent):
        return FrameOutputs(network, edits, slots, precision)
    return RememberingOutputs(network, edits, slots, precision)


class RememberingOutputs:
    """Logits and values of a network that remembers each slot's episode.

    Args:
        network, edits, precision: what is run, on the network's device.
        slots: N.
    """

    def __init__(self, network: TappedNetwork, edits: Sequence[Edit], slots: int, precision: Precision) -> None:
        self._player = network.player(slots, edits=edits)
        self._precision: Precision = precision
        self._device = next(network.parameters()).device

    def begin(self, slots: Int[np.ndarray, " n"], trials: Int[np.ndarray, " n"] | None = None) -> None:
        """An episode begins in each of these slots; there are no edits by row."""
        self._player.begin(slots)

    def __call__(
        self, frames: UInt8[np.ndarray, "N 64 64 3"], slots: Int[np.ndarray, " n"]
    ) -> tuple[Float[Tensor, "n A"], Float[Tensor, " n"]]:
        """Float32 logits and values, on the CPU, of the slots asked for."""
        with autocast(self._precision, self._device):
            output = self._player(torch.from_numpy(frames[slots]).to(self._device), slots)
        found = _outputs(output).float().cpu()
        return found[:, :-1], found[:, -1]

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """These actions were taken there."""
        self._player.took(slots, actions)


class FrameOutputs:
    """Logits and values of the slots' frames, running the agent no more than it takes.

    Agents see one frame and remember nothing. So the outputs for a frame that has not changed since the last step
    stand (a stuck greedy agent costs nothing), and an agent whose edits cut it off from the frame altogether (an
    ablated bottleneck) is run once. Edits by row are told which trial each row undergoes.

    Args:
        agent, edits, precision: what is run, on the agent's device.
        slots: N.
    """

    def __init__(self, agent: TappedAgent, edits: Sequence[Edit], slots: int, precision: Precision) -> None:
        self._agent = agent
        self._edits = tuple(edits)
        self._precision: Precision = precision
        self._device = next(agent.parameters()).device
        self._frames = np.zeros((slots, 64, 64, 3), dtype=np.uint8)  # the frame that each row of outputs belongs to
        self._outputs: Tensor | None = None  # [N A + 1], the value last
        self._sees_frames = True
        self._by_row = [edit for _, edit in edits if isinstance(edit, RowEdit)]
        self._trials = np.zeros(slots, dtype=np.int64)
        self._stale = np.zeros(slots, dtype=bool)

    def begin(self, slots: Int[np.ndarray, " n"], trials: Int[np.ndarray, " n"] | None = None) -> None:
        """An episode begins in each of these slots: under another edit, the same frame means something else."""
        if trials is not None:
            self._trials[slots], self._stale[slots] = trials, True

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """Nothing is remembered."""

    def __call__(
        self, frames: UInt8[np.ndarray, "N 64 64 3"], slots: Int[np.ndarray, " n"]
    ) -> tuple[Float[Tensor, "n A"], Float[Tensor, " n"]]:
        """Float32 logits and values, on the CPU, of the slots asked for. The first call reads all slots."""
        if self._outputs is None:
            self._outputs = self._run(frames, self._trials)
            self._frames[:] = frames
            self._stale[:] = False
            self._sees_frames = bool(self._by_row) or sees_frames(self._agent, frames, self._edits)
        elif self._sees_frames:
            unlike = (_words(frames)[slots] != _words(self._frames)[slots]).any(axis=1)
            changed = slots[unlike | self._stale[slots]]
            if len(changed):
                self._outputs[changed] = self._run(frames[changed], self._trials[changed])
                self._frames[changed] = frames[changed]
                self._stale[changed] = False
        chosen = self._outputs[slots]
        return chosen[:, :-1], chosen[:, -1]

    def _run(self, frames: np.ndarray, trials: np.ndarray) -> Tensor:
        """Outputs for n frames."""
        count = len(frames)
        for edit in self._by_row:
            edit.assign(padded_batch(trials))
        batch = padded_batch(frames).to(self._device)
        with autocast(self._precision, self._device):
            output = self._agent(batch, edits=self._edits)
        return _outputs(output)[:count].float().cpu()


def sees_frames(agent: TappedAgent, frames: UInt8[np.ndarray, "N 64 64 3"], edits: Sequence[Edit]) -> bool:
    """Whether a frame can still sway the outputs: no path for a gradient, and equal outputs for unlike frames.

    Either alone would not do: an edit may cut gradients and not the signal, and outputs may agree by chance.

    Args:
        agent: on whatever device.
        frames: some, of which the first few are tried.
        edits: put in.
    """
    with torch.inference_mode(False), torch.enable_grad():
        weight = next(agent.parameters())
        some = torch.from_numpy(frames[: SMALLEST_BATCH // 2]).to(weight.device, weight.dtype) / 255
        inputs = torch.cat([some, 1 - some]).requires_grad_()
        # not __call__: no training compilation
        outputs = _outputs(agent.forward(inputs, edits=edits))
        if outputs.requires_grad and torch.autograd.grad(outputs.sum(), inputs, allow_unused=True)[0] is not None:
            return True
        return not torch.allclose(outputs, outputs[:1].expand_as(outputs), rtol=0, atol=1e-5)


def _outputs(output: AgentOutput) -> Float[Tensor, "B outputs"]:
    assert output.logits is not None
    value = output.logits.new_full((len(output.logits),), torch.nan) if output.value is None else output.value
    return torch.cat([output.logits, value[:, None]], dim=1)


def _words(frames: np.ndarray) -> np.ndarray:
    """Frames [N 64 64 3] as rows of 8-byte words, which compare faster than bytes."""
    return frames.reshape(len(frames), -1).view(np.uint64)
