"""Environments played by a policy for some steps, and the batch to learn from that this makes."""

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from datamodules.advantages import RewardNormaliser, generalised_advantages
from datamodules.episode_tally import EpisodeTally
from datamodules.oracle_critic import OracleCritic
from datamodules.ranks import gather
from datamodules.rollout_batch import RolloutBatch, RolloutPolicy
from environments import FRAME_SHAPE, VectorEnvironment
from networks import AgentOutput, log_probabilities, sample_actions


def _detached(output: AgentOutput) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    assert output.logits is not None
    assert output.value is not None
    return output.logits.detach(), output.value.detach()


def _pinned(values: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """Values in memory that a GPU copies from while the process goes on; torch keeps it until the copy is done."""
    return values.pin_memory() if device.type == "cuda" else values


class RolloutPlayer:
    """N environments under a policy, with all that one rollout hands on to the next.

    Args:
        environments: N of them, made in this process.
        num_steps: T.
        discount: gamma.
        gae_lambda: lambda of the advantages.
        reward_clip: largest scaled reward.
        critic: values states for the baseline of the advantages, while it has a weight.
        seed: of action noise and minibatches.

    Attributes:
        generator: draws action noise, and the order of rows in minibatches.
        normaliser: of rewards.
        tally: of episodes.
    """

    def __init__(
        self,
        environments: VectorEnvironment,
        num_steps: int,
        discount: float,
        gae_lambda: float,
        reward_clip: float,
        critic: OracleCritic | None,
        seed: int,
    ) -> None:
        self.environments = environments
        self.num_steps = num_steps
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.critic = critic
        self.tally = EpisodeTally(environments.num_environments)
        self.normaliser = RewardNormaliser(environments.num_environments, discount, reward_clip)
        self.generator = torch.Generator().manual_seed(seed)
        self._frames: Tensor | None = None
        self._cut = torch.zeros(0, dtype=torch.bool)

    def play(
        self,
        policy: RolloutPolicy,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
        time_limit: int | None = None,
        critic_weight: float = 0.0,
    ) -> RolloutBatch:
        """Play T steps in every environment and prepare what the update needs; for all ranks to call.

        Args:
            policy: what plays.
            precision: makes the context in which the network runs.
            time_limit: break an episode off after so many steps.
            critic_weight: the critic's share of the baseline of advantages; the rest is the policy's own value.

        Returns:
            T x N rows, time first, without reference logits. The frames are overwritten by the next rollout.
        """
        steps, slots, device = self.num_steps, self.environments.num_environments, policy.device
        if self._frames is None or self._frames.device != device:
            self._frames = torch.empty(steps, slots, *FRAME_SHAPE, dtype=torch.uint8, device=device)
        logits = torch.empty(steps, slots, self.environments.num_actions, device=device)
        noise = _pinned(torch.rand(logits.shape, generator=self.generator), device).to(device, non_blocking=True)
        actions = torch.empty(steps, slots, dtype=torch.int64, device=device)
        values = torch.empty(steps + 1, slots, device=device)
        rewards = torch.empty(steps, slots)
        critic_values = torch.zeros(steps + 1, slots)
        first = torch.zeros(steps + 1, slots, dtype=torch.bool)
        cut = torch.zeros(steps, slots, dtype=torch.bool)
        # With gradients, though none is taken: torch.compile builds another network without them, whose bf16 rounding
        # differs from that of the update, by up to 4 % of a ratio.
        with torch.enable_grad(), precision():
            frames = torch.from_numpy(self.environments.observe()[1])
            for t in range(steps):
                self._frames[t].copy_(_pinned(frames, device), non_blocking=True)
                logits[t], values[t] = _detached(policy(self._frames[t]))
                if critic_weight:  # on the CPU, while a GPU is busy with the policy
                    critic_values[t] = self._critic_values()
                actions[t] = sample_actions(logits[t], noise[t])
                if time_limit is not None:
                    cut[t] = torch.from_numpy(self.tally.lengths >= time_limit)
                frames, rewards[t], first[t + 1] = self._step(actions[t], cut[t])
            values[steps] = _detached(policy(frames.to(device)))[1]
            if critic_weight:
                critic_values[steps] = self._critic_values()
        self._cut = cut.flatten()
        scaled = self.normaliser(rewards, first[1:]).to(device)
        estimate = partial(
            generalised_advantages,
            scaled,
            first=first.to(device),
            cut=cut.to(device),
            discount=self.discount,
            gae_lambda=self.gae_lambda,
        )
        advantages, returns = estimate(values)
        if critic_weight:
            known = (critic_values * self.normaliser.scale).to(device)
            advantages, _ = estimate(critic_weight * known + (1 - critic_weight) * values)
        played = gather(advantages)[~gather(cut).to(device)]
        advantages = (advantages - played.mean()) / (played.std() + 1e-8)
        return RolloutBatch(
            frames=self._frames.flatten(0, 1),
            actions=actions.flatten(),
            log_probs=log_probabilities(logits.flatten(0, 1), actions.flatten()),
            values=values[:-1].flatten(),
            advantages=advantages.flatten(),
            returns=returns.flatten(),
            reference_logits=None,
        )

    def shuffled_rows(self) -> Int[Tensor, " B"]:
        """The last rollout's rows in random order.

        Where an episode was cut short there is no action to learn from: a random other row takes the place, so that
        minibatches keep their size.
        """
        order = torch.randperm(len(self._cut), generator=self.generator)
        if self._cut.any():
            played = (~self._cut).nonzero().squeeze(-1)
            instead = torch.randint(len(played), (int(self._cut.sum()),), generator=self.generator)
            order[self._cut[order]] = played[instead]
        return order

    def _critic_values(self) -> Float[Tensor, " N"]:
        assert self.critic is not None
        return torch.from_numpy(self.critic(self.environments.get_states(), self.discount))

    def _step(
        self, actions: Int[Tensor, " N"], cut: Bool[Tensor, " N"]
    ) -> tuple[UInt8[Tensor, "N 64 64 3"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Act; where the episode is cut short, begin another level instead, for no reward."""
        self.environments.act(actions.cpu().masked_fill(cut, -1).numpy())
        reward, frames, first = self.environments.observe()
        reward = np.where(cut.numpy(), 0, reward)
        self.tally.step(reward, first, cut.numpy())
        return torch.from_numpy(frames), torch.from_numpy(reward), torch.from_numpy(first)

    def state_dict(self) -> dict[str, Any]:
        """All that the next rollout depends on besides the policy, as primitives and tensors."""
        states = [zlib.compress(state, 1) for state in self.environments.get_states()]
        return {
            "environments": torch.frombuffer(bytearray(b"".join(states)), dtype=torch.uint8),
            "environment_sizes": [len(state) for state in states],
            "generator": self.generator.get_state(),
            "normaliser": self.normaliser.state_dict(),
            "tally": self.tally.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken, from a player of as many of the same environments."""
        packed = state["environments"].split(state["environment_sizes"])
        self.environments.set_states([zlib.decompress(part.numpy().tobytes()) for part in packed])
        self.generator.set_state(state["generator"])
        self.normaliser.load_state_dict(state["normaliser"])
        self.tally.load_state_dict(state["tally"])
