"""What collecting asks of a policy, and what it hands to the update."""

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from networks import AgentOutput


class RolloutPolicy(Protocol):
    """What collecting asks of the module that is being trained."""

    @property
    def device(self) -> torch.device:
        """Where the network lives; rollouts are kept there."""

    def __call__(self, frames: UInt8[Tensor, "B 64 64 3"]) -> AgentOutput:
        """Logits and values of frames."""

    def reference_logits(self, frames: UInt8[Tensor, "B 64 64 3"]) -> Float[Tensor, "B A"] | None:
        """Logits of the policy that the trained one is held to; None when it is held to none."""


class RolloutBatch(NamedTuple):
    """A minibatch, or a whole rollout, of B frames and what was done on them; of one rank where there are several.

    Attributes:
        frames: as the environment rendered them.
        actions: taken on them.
        log_probs: of those actions when they were taken.
        values: predicted when the frames were collected, in units of scaled reward.
        advantages: normalised to mean 0 and standard deviation 1 over the rollout, that of all ranks.
        returns: targets of the value, in units of scaled reward.
        reference_logits: of the policy that this one is held to, if any.
    """

    frames: UInt8[Tensor, "B 64 64 3"]
    actions: Int[Tensor, " B"]
    log_probs: Float[Tensor, " B"]
    values: Float[Tensor, " B"]
    advantages: Float[Tensor, " B"]
    returns: Float[Tensor, " B"]
    reference_logits: Float[Tensor, "B A"] | None

    def rows(self, index: Int[Tensor, " b"]) -> "RolloutBatch":
        """The chosen rows."""
        return RolloutBatch(*(None if field is None else field.index_select(0, index) for field in self))  # type: ignore[arg-type]
