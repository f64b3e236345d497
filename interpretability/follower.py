"""Running a network beside a play that it watches."""

from collections.abc import Sequence

import torch

from interpretability.episodes import PlayedStep
from networks.precision import Precision, autocast
from networks.taps import AgentOutput, Edit, Player, TappedNetwork


class Follower:
    """A network, with edits, that sees the frames of somebody else's play and is told that it took those actions.

    One that remembers has to see every step of it.

    Args:
        network, precision: what is run, on the network's device.
        record, edits: its taps.
    """

    def __init__(
        self, network: TappedNetwork, precision: Precision, record: Sequence[str] = (), edits: Sequence[Edit] = ()
    ) -> None:
        self._network, self._record, self._edits = network, tuple(record), tuple(edits)
        self._precision: Precision = precision
        self._device = next(network.parameters()).device
        self._player: Player | None = None
        self._slots = 0

    def __call__(self, step: PlayedStep) -> AgentOutput:
        """What the network makes of a step: one row for each slot of it."""
        if self._player is None or step.slots[-1] >= self._slots:  # all slots play at the first step
            self._slots = int(step.slots[-1]) + 1
            self._player = self._network.player(self._slots, self._record, self._edits)
        self._player.begin(step.slots[step.steps == 0])
        with autocast(self._precision, self._device):
            output = self._player(torch.from_numpy(step.frames).to(self._device), step.slots)
        self._player.took(step.slots, step.actions)
        return output
