"""Playing a decision transformer in many environments at once, each remembered with its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from networks.taps import AgentOutput, Edit, TapPass
from networks.trajectory_window import next_return
from networks.transformer_block import StepMemory

if TYPE_CHECKING:
    from networks.decision_transformer import DecisionTransformer


class DecisionPlayer:
    """Feeds a decision transformer one step at a time; it sees the last `context` steps of each episode.

    What the earlier steps were is in the cache's keys and values, and what those had seen as well: beyond the context
    play equals one pass over the whole episode with a banded mask, not one over its last steps alone.

    The return asked for begins as the network's `asked_return` and grows by 1 / gamma a step, to at most a gem's.
    """

    def __init__(
        self, network: DecisionTransformer, slots: int, record: Sequence[str] = (), edits: Sequence[Edit] = ()
    ) -> None:
        network.check_taps(record)
        network.check_edits(edits)
        self._network, self._record, self._edits = network, tuple(record), tuple(edits)
        self._device = device = next(network.parameters()).device
        tokens, head_width = len(network.tokens), network.width // network.heads
        self._memory = StepMemory(network.depth, slots, network.heads, network.context, tokens, head_width, device)
        self._asked = torch.full((slots,), float(network.asked_return), device=device)
        self._before = torch.full((slots,), network.num_actions, device=device)

    def begin(self, slots: Int[np.ndarray, " n"]) -> None:
        """An episode begins in each of these slots."""
        where = torch.from_numpy(slots).to(self._device)
        self._memory.begin(where)
        self._asked[where] = float(self._network.asked_return)
        self._before[where] = self._network.num_actions

    def __call__(self, frames: UInt8[Tensor, "n 64 64 3"], slots: Int[np.ndarray, " n"]) -> AgentOutput:
        """The network's output for the next frame of each slot; asked twice for one step, it answers the same."""
        assert (np.diff(slots) > 0).all(), "slots in ascending order"
        network, where = self._network, torch.from_numpy(slots).to(self._device)
        passes = TapPass(self._record, self._edits)
        features = network.encode(frames[:, None], passes, self._record, self._edits)
        steps = self._memory.steps[where, None]
        x_BTKD = network.embed(features, self._before[where, None], self._asked[where, None], steps)
        output = network.think(x_BTKD, passes, memory=self._memory, slots=where)
        assert output.logits is not None
        recorded = {tap: acts.flatten(0, 1) for tap, acts in output.activations.items()}
        return AgentOutput(output.logits.flatten(0, 1), None, recorded)

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """These actions were taken: the next call is about the step after."""
        where = torch.from_numpy(slots).to(self._device)
        self._memory.advance(where)
        self._before[where] = torch.from_numpy(actions).to(self._device)
        self._asked[where] = next_return(self._asked[where])
