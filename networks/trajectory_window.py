"""What a decision transformer eats: windows of trajectories, with the return that is still to come at each step."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

GAMMA = 0.98
"""Discount of returns-to-go: heist pays once, so an undiscounted one would say nothing but whether it does."""
MAX_RETURN = 10.0
"""What heist pays for the gem."""


def next_return(returns: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """What is asked for at the next step: what was asked for is still to come, a step nearer, and at most a gem."""
    return (returns / GAMMA).clamp_max(MAX_RETURN)


class TrajectoryWindow(NamedTuple):
    """T consecutive steps of B episodes; shorter ones are padded on the RIGHT, where causal attention never looks.

    Attributes:
        frames: what was seen at each step.
        actions: what was done on it.
        returns_to_go: what was still to come at each step, the action of that step included.
        timesteps: place of each step in its episode, from 0.
        mask: True where a step is real; whatever stands elsewhere must not matter.
    """

    frames: UInt8[Tensor, "B T 64 64 3"]
    actions: Int64[Tensor, "B T"]
    returns_to_go: Float32[Tensor, "B T"]
    timesteps: Int64[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
