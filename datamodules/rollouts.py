"""On-policy rollouts: the environments play under the network that is being trained, one rollout an epoch."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.advantages import RewardNormaliser, generalised_advantages
from datamodules.episode_tally import EpisodeTally
from datamodules.oracle_critic import OracleCritic
from environments import FRAME_SHAPE, EnvironmentSettings, VectorEnvironment
from networks import AgentOutput, log_probabilities, sample_actions


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
    """A minibatch, or a whole rollout, of B frames and what was done on them.

    Attributes:
        frames: as the environment rendered them.
        actions: taken on them.
        log_probs: of those actions when they were taken.
        values: predicted when the frames were collected, in units of scaled reward.
        advantages: normalised to mean 0 and standard deviation 1 over the rollout.
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


def _detached(output: AgentOutput) -> tuple[Float[Tensor, "B A"], Float[Tensor, " B"]]:
    assert output.logits is not None
    assert output.value is not None
    return output.logits.detach(), output.value.detach()


class _RolloutLoader:
    """A loader with a length, so that Lightning does not fetch ahead with a stale policy."""

    def __init__(self, batches: Callable[[], Iterator[RolloutBatch]], length: int) -> None:
        self._batches = batches
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[RolloutBatch]:
        return self._batches()


class RolloutDataModule(LightningDataModule):
    """One rollout of T frames x N environments a Lightning epoch, as shuffled minibatches for several passes.

    The module that is being trained is the policy; it plays under the trainer's own precision, so that the
    log-probabilities of the first minibatch are those of collection. Environments, random generator, reward
    normaliser and unfinished episodes are part of `state_dict`: saved between two epochs, a run goes on exactly.

    Args:
        environment: what is played; heist, easy, all training levels by default.
        num_environments: N.
        num_steps: T.
        num_epochs: passes over a rollout.
        num_minibatches: minibatches a pass; T x N must be a multiple.
        discount: gamma.
        gae_lambda: lambda of the advantages.
        reward_clip: largest scaled reward.
        critic: knows the values of states, for heist, and is the baseline of the advantages while its weight lasts;
            null leaves that to the agent's own values. What those learn from is the same either way.
        time_limit: break an episode off after so many steps, bootstrapping from its last frame; None leaves it to
            the game's own time-out.
        time_limit_frames: apply the time limit only while fewer environment frames were played; None is always.
        seed: of levels, action noise and minibatches.

    Raises:
        ValueError: numbers that do not fit together.
    """

    def __init__(
        self,
        environment: EnvironmentSettings | None = None,
        num_environments: int = 64,
        num_steps: int = 256,
        num_epochs: int = 3,
        num_minibatches: int = 8,
        discount: float = 0.999,
        gae_lambda: float = 0.95,
        reward_clip: float = 10.0,
        critic: OracleCritic | None = None,
        time_limit: int | None = None,
        time_limit_frames: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_environments * num_steps % num_minibatches:
            raise ValueError(
                f"num_environments {num_environments} x num_steps {num_steps} = {num_environments * num_steps} frames "
                f"do not split into {num_minibatches} equal minibatches: change num_minibatches"
            )
        if time_limit is not None and time_limit < 1:
            raise ValueError(f"time_limit is {time_limit}: give at least 1 step, or null for none")
        if time_limit_frames is not None and time_limit is None:
            raise ValueError("time_limit_frames is set without a time_limit: set both or neither")
        self.environment = environment or EnvironmentSettings()
        if critic is not None and self.environment.game != "heist":
            raise ValueError(f"the oracle knows heist only, not {self.environment.game}: set critic to null")
        self.critic = critic
        self.num_environments = num_environments
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.time_limit = time_limit
        self.time_limit_frames = time_limit_frames
        self.seed = seed
        self.env_steps = 0
        self.rollout: RolloutBatch | None = None
        self.tally = EpisodeTally(num_environments)
        self._normaliser = RewardNormaliser(num_environments, discount, reward_clip)
        self._generator = torch.Generator().manual_seed(seed)
        self._environments: VectorEnvironment | None = None
        self._frames: Tensor | None = None
        self._cut: Tensor | None = None

    @property
    def frames_per_rollout(self) -> int:
        """T x N."""
        return self.num_steps * self.num_environments

    def setup(self, stage: str) -> None:
        """Make the environments, in the process that uses them."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ValueError("rollouts are collected in one process: set trainer.devices and trainer.num_nodes to 1")
        if self._environments is None:
            self._environments = VectorEnvironment(self.environment, self.num_environments, self.seed)

    def train_dataloader(self) -> _RolloutLoader:
        """The loader; its length is passes x minibatches."""
        return _RolloutLoader(self._minibatches, self.num_epochs * self.num_minibatches)

    def _minibatches(self) -> Iterator[RolloutBatch]:
        # A generator: Lightning probes iter(), and only the first next() may play. All that a checkpoint saves is
        # settled before the first yield, because nothing promises that control comes back after the last.
        trainer = self.trainer
        assert trainer is not None
        policy: Any = trainer.lightning_module
        rollout = self.collect(policy, trainer.precision_plugin.forward_context)
        orders = [self._shuffled_rows() for _ in range(self.num_epochs)]
        for order in orders:
            for rows in order.to(rollout.actions.device).chunk(self.num_minibatches):
                yield rollout.rows(rows)

    def _shuffled_rows(self) -> Int[Tensor, " B"]:
        """The rollout's rows in random order.

        Where an episode was cut short there is no action to learn from: a random other row takes the place, so that
        minibatches keep their size.
        """
        assert self._cut is not None
        order = torch.randperm(self.frames_per_rollout, generator=self._generator)
        if self._cut.any():
            played = (~self._cut).nonzero().squeeze(-1)
            instead = torch.randint(len(played), (int(self._cut.sum()),), generator=self._generator)
            order[self._cut[order]] = played[instead]
        return order

    def collect(
        self, policy: RolloutPolicy, precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> RolloutBatch:
        """Play T steps in every environment and prepare what the update needs.

        Args:
            policy: what plays.
            precision: makes the context in which the network runs.

        Returns:
            T x N rows, time first.
        """
        assert self._environments is not None, "setup() makes the environments"
        steps, slots, device = self.num_steps, self.num_environments, policy.device
        if self._frames is None or self._frames.device != device:
            self._frames = torch.empty(steps, slots, *FRAME_SHAPE, dtype=torch.uint8, device=device)
        logits = torch.empty(steps, slots, self._environments.num_actions, device=device)
        actions = torch.empty(steps, slots, dtype=torch.int64, device=device)
        values = torch.empty(steps + 1, slots, device=device)
        rewards = torch.empty(steps, slots)
        critic_weight = 0.0 if self.critic is None else self.critic.weight(self.env_steps)
        critic_values = torch.zeros(steps + 1, slots)
        first = torch.zeros(steps + 1, slots, dtype=torch.bool)
        cut = torch.zeros(steps, slots, dtype=torch.bool)
        # With gradients, though none is taken: torch.compile builds another network without them, whose bf16 rounding
        # differs from that of the update, by up to 4 % of a ratio.
        with torch.enable_grad(), precision():
            frames = self._observed_frames()
            for t in range(steps):
                self._frames[t].copy_(frames)
                logits[t], values[t] = _detached(policy(self._frames[t]))
                if critic_weight:
                    critic_values[t] = self._critic_values()
                uniforms = torch.rand(logits[t].shape, generator=self._generator)
                actions[t] = sample_actions(logits[t], uniforms.to(device))
                cut[t] = self._over_time_limit()
                frames, rewards[t], first[t + 1] = self._step(actions[t], cut[t])
            values[steps] = _detached(policy(frames.to(device)))[1]
            if critic_weight:
                critic_values[steps] = self._critic_values()
            reference_logits = self._reference_logits(policy)
        self.env_steps += self.frames_per_rollout
        self._cut = cut.flatten()
        scaled = self._normaliser(rewards, first[1:]).to(device)
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
            known = (critic_values * self._normaliser.scale).to(device)
            advantages, _ = estimate(critic_weight * known + (1 - critic_weight) * values)
        played = advantages[~cut]
        advantages = (advantages - played.mean()) / (played.std() + 1e-8)
        log_probs = log_probabilities(logits.flatten(0, 1), actions.flatten()).view_as(actions)
        self.rollout = RolloutBatch(
            frames=self._frames.flatten(0, 1),
            actions=actions.flatten(),
            log_probs=log_probs.flatten(),
            values=values[:-1].flatten(),
            advantages=advantages.flatten(),
            returns=returns.flatten(),
            reference_logits=reference_logits,
        )
        return self.rollout

    def _critic_values(self) -> Float[Tensor, " N"]:
        assert self._environments is not None
        assert self.critic is not None
        return torch.from_numpy(self.critic(self._environments.get_states(), self.discount))

    def _observed_frames(self) -> UInt8[Tensor, "N 64 64 3"]:
        assert self._environments is not None
        return torch.from_numpy(self._environments.observe()[1])

    def _over_time_limit(self) -> Bool[Tensor, " N"]:
        applies = self.time_limit_frames is None or self.env_steps < self.time_limit_frames
        if self.time_limit is None or not applies:
            return torch.zeros(self.num_environments, dtype=torch.bool)
        return torch.from_numpy(self.tally.lengths >= self.time_limit)

    def _step(
        self, actions: Int[Tensor, " N"], cut: Bool[Tensor, " N"]
    ) -> tuple[UInt8[Tensor, "N 64 64 3"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Act; where the episode is cut short, begin another level instead, for no reward."""
        assert self._environments is not None
        self._environments.act(actions.cpu().masked_fill(cut, -1).numpy())
        reward, frames, first = self._environments.observe()
        reward = np.where(cut.numpy(), 0, reward)
        self.tally.step(reward, first, cut.numpy())
        return torch.from_numpy(frames), torch.from_numpy(reward), torch.from_numpy(first)

    @torch.no_grad()
    def _reference_logits(self, policy: RolloutPolicy) -> Float[Tensor, "B A"] | None:
        assert self._frames is not None
        chunks = []
        for frames in self._frames.flatten(0, 1).chunk(self.num_minibatches):
            logits = policy.reference_logits(frames)
            if logits is None:
                return None
            chunks.append(logits)
        return torch.cat(chunks)

    def state_dict(self) -> dict[str, Any]:
        """All that the next rollout depends on besides the network, as primitives and tensors."""
        if self._environments is None:
            return {}
        states = [zlib.compress(state, 1) for state in self._environments.get_states()]
        return {
            "played": self._played_settings(),
            "env_steps": self.env_steps,
            "environments": torch.frombuffer(bytearray(b"".join(states)), dtype=torch.uint8),
            "environment_sizes": [len(state) for state in states],
            "generator": self._generator.get_state(),
            "normaliser": self._normaliser.state_dict(),
            "tally": self.tally.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken.

        Raises:
            ValueError: the state was taken from other environments than those configured now.
        """
        assert self._environments is not None, "setup() makes the environments"
        ours = self._played_settings()
        differences = [
            f"{key} {saved!r} there, {ours.get(key)!r} here"
            for key, saved in state_dict["played"].items()
            if saved != ours.get(key)
        ]
        if differences:
            raise ValueError(
                f"the checkpoint is from other environments ({'; '.join(differences)}): "
                "resume with its own configuration, or start anew without ckpt_path"
            )
        packed = state_dict["environments"].split(state_dict["environment_sizes"])
        self._environments.set_states([zlib.decompress(state.numpy().tobytes()) for state in packed])
        self.env_steps = state_dict["env_steps"]
        self._generator.set_state(state_dict["generator"])
        self._normaliser.load_state_dict(state_dict["normaliser"])
        self.tally.load_state_dict(state_dict["tally"])

    def _played_settings(self) -> dict[str, Any]:
        settings = {**self.environment.as_dict(), "num_environments": self.num_environments}
        del settings["num_threads"]  # changes the speed, not what is played
        return settings
