"""What turns a rollout's rewards into targets: generalised advantages and the scale of rewards."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from datamodules.ranks import gather


class Advantages(NamedTuple):
    """What the update learns from, per frame: the advantage of the action and the target of the value."""

    advantages: Float[Tensor, "T N"]
    returns: Float[Tensor, "T N"]


def generalised_advantages(
    rewards: Float[Tensor, "T N"],
    values: Float[Tensor, "T+1 N"],
    first: Bool[Tensor, "T+1 N"],
    cut: Bool[Tensor, "T N"],
    discount: float,
    gae_lambda: float,
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16) for gym3's order of things.

    Row t is the frame observed at t and the action taken on it; `rewards[t]` is what the action earned, which gym3
    shows beside the *next* frame; `first[t + 1]` says that the action ended the episode, so that nothing is
    bootstrapped from the next frame, which is another level. `first[0]` is not looked at.

    `cut[t]` marks a frame on which the episode was broken off from outside: no action of the policy was taken
    there, its own advantage is 0 and its return its value, and the row before bootstraps from its value. That is
    how a time limit is not mistaken for the end of the world.

    Args:
        rewards: of the action in each row, as scaled for learning.
        values: of each row's frame, and of the one after the last row.
        first: whether a frame begins an episode.
        cut: whether the episode was broken off on the frame.
        discount: gamma.
        gae_lambda: lambda.
    """
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[0])
    for t in reversed(range(rewards.shape[0])):
        goes_on = (~first[t + 1]).to(rewards.dtype)
        delta = rewards[t] + discount * goes_on * values[t + 1] - values[t]
        following = (delta + discount * gae_lambda * goes_on * following) * (~cut[t]).to(rewards.dtype)
        advantages[t] = following
    return Advantages(advantages, advantages + values[:-1])


class RewardNormaliser:
    """Scales rewards by the running standard deviation of the discounted return, as baselines' VecNormalize does.

    The mean is left in, so that no reward stays no reward. Statistics are kept in float64 and taken over once per
    rollout: every reward of a rollout is divided by the same number, on all ranks of distributed training.

    Args:
        num_environments: N, on this rank.
        discount: gamma of the return whose deviation is tracked.
        clip: largest absolute value of a scaled reward.
    """

    def __init__(self, num_environments: int, discount: float, clip: float = 10.0) -> None:
        self.discount = discount
        self.clip = clip
        self.mean = 0.0
        self.variance = 1.0
        self.count = 1e-4
        self.running = torch.zeros(num_environments, dtype=torch.float64)

    def __call__(self, rewards: Float[Tensor, "T N"], ended: Bool[Tensor, "T N"]) -> Float[Tensor, "T N"]:
        """Take a rollout's raw rewards into the statistics and scale them.

        Args:
            rewards: as the game gives them, on the CPU.
            ended: whether the episode ended with the action of the row.
        """
        returns = torch.empty(rewards.shape, dtype=torch.float64)
        for t in range(rewards.shape[0]):
            self.running = self.running * self.discount + rewards[t].double()
            returns[t] = self.running
            self.running = self.running.masked_fill(ended[t], 0.0)
        self._update(gather(returns))
        return (rewards * self.scale).clamp(-self.clip, self.clip)

    @property
    def scale(self) -> float:
        """What rewards are multiplied by."""
        return float((self.variance + 1e-8) ** -0.5)

    def _update(self, returns: Float[Tensor, "W T N"]) -> None:
        """Merge the moments of a batch into the running ones (Chan et al. 1979)."""
        mean, variance, count = returns.mean().item(), returns.var(correction=0).item(), returns.numel()
        total, delta = self.count + count, mean - self.mean
        moment = self.variance * self.count + variance * count + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.variance = moment / total
        self.count = total

    def state_dict(self) -> dict[str, float | Tensor]:
        """The running statistics as primitives and one tensor."""
        return {
            "mean": self.mean,
            "variance": self.variance,
            "count": self.count,
            "running": self.running.clone(),
        }

    def load_state_dict(self, state: dict[str, float | Tensor]) -> None:
        """Go on from saved statistics."""
        self.mean, self.variance, self.count = (float(state[key]) for key in ("mean", "variance", "count"))
        self.running = torch.as_tensor(state["running"]).clone()
