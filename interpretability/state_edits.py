"""Edits that are told the game's own state: what the frame shows, said by the game rather than seen by the network."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from environments import VectorEnvironment
from networks.padding import padded_batch
from networks.precision import Precision, autocast
from networks.taps import Edit, TappedAgent, TappedNetwork


class StateEdit(nn.Module, ABC):
    """An edit that sees the saved states of the frames of the next batch, row by row.

    `play_episodes` calls `see` before each pass. Whatever else runs the network does so itself.
    """

    @abstractmethod
    def see(self, states: Sequence[bytes]) -> None:
        """The states of the next batch."""


class StateOutputs:
    """Logits and values of the slots that play, with edits that see their states.

    Args:
        agent, edits, precision: what is run, on the agent's device.
        environment: whose slots play.

    Raises:
        ValueError: a network that remembers an episode.
    """

    def __init__(
        self, agent: TappedNetwork, edits: Sequence[Edit], environment: VectorEnvironment, precision: Precision
    ) -> None:
        if not isinstance(agent, TappedAgent):
            raise ValueError(f"{agent.architecture} remembers an episode: tell states to an agent of single frames")
        self._agent, self._edits, self._environment = agent, tuple(edits), environment
        self._precision: Precision = precision
        self._device = next(agent.parameters()).device

    def begin(self, slots: Int[np.ndarray, " n"], trials: Int[np.ndarray, " n"] | None = None) -> None:
        """Nothing is remembered."""

    def took(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> None:
        """Nothing is remembered."""

    def __call__(
        self, frames: UInt8[np.ndarray, "N 64 64 3"], slots: Int[np.ndarray, " n"]
    ) -> tuple[Float[Tensor, "n A"], Float[Tensor, " n"]]:
        """Float32 logits and values, on the CPU, of the slots asked for."""
        states = self._environment.get_states(slots.tolist())
        batch = padded_batch(frames[slots])
        padded = [states[row] for row in padded_batch(np.arange(len(states))).tolist()]
        for _, edit in self._edits:
            if isinstance(edit, StateEdit):
                edit.see(padded)
        with autocast(self._precision, self._device):
            output = self._agent(batch.to(self._device), edits=self._edits)
        assert output.logits is not None
        assert output.value is not None
        return output.logits[: len(slots)].float().cpu(), output.value[: len(slots)].float().cpu()


class Seen(StateEdit):
    """Changes nothing, and keeps what it saw last: for an observer of the same play.

    Attributes:
        states: of the last batch, padded as it was.
        acts: of its tap.
    """

    def __init__(self) -> None:
        super().__init__()
        self.states: list[bytes] = []
        self.acts = torch.zeros(0)

    def see(self, states: Sequence[bytes]) -> None:
        """The states of the next batch."""
        self.states = list(states)

    def forward(self, acts: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        self.acts = acts
        return acts
