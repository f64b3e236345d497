"""Acting: what collectors and players ask of a network, and sampling with given noise."""

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from networks.taps import AgentOutput, Edit


class Policy(Protocol):
    """Anything that maps frames to action logits and values; every `TappedAgent` is one."""

    def __call__(
        self,
        frames: Shaped[Tensor, "B 64 64 3"],
        record: Sequence[str] = (),
        edits: Sequence[Edit] = (),
        outputs: bool = True,
    ) -> AgentOutput: ...


def sample_actions(logits: Float[Tensor, "B A"], uniforms: Float[Tensor, "B A"] | None) -> Int64[Tensor, " B"]:
    """Actions from the policy's distribution by the Gumbel-max trick.

    Args:
        logits: unnormalised log-probabilities.
        uniforms: noise in (0, 1). Two plays with the same noise choose differently only where their logits differ
            enough, which pairs clean and edited play. None takes the most likely action.
    """
    if uniforms is None:
        return logits.argmax(-1)
    gumbel = -torch.log(-torch.log(uniforms.clamp(1e-20, 1 - 1e-7)))
    return (logits + gumbel).argmax(-1)


def log_probabilities(logits: Float[Tensor, "B A"], actions: Int64[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Log-probability of each action taken."""
    return logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
