"""On-policy rollouts: the environments play under the network that is being trained, one rollout an epoch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.episode_tally import EpisodeTally
from datamodules.oracle_critic import OracleCritic
from datamodules.ranks import gather, gather_states, rank, rank_seed, world_size
from datamodules.resuming import changed_settings, global_random_state, set_global_random_state
from datamodules.rollout_batch import RolloutBatch, RolloutPolicy
from datamodules.rollout_player import RolloutPlayer
from environments import EnvironmentSettings, VectorEnvironment, refuse_held_out

# Settings that the saved state is bound to: another level, number or scale would belong to it. A new seed would change
# nothing, because generators go on as they were. All others may change on the way.
FIXED_SETTINGS = ("environment", "num_environments", "discount", "seed", "processes")
_SETTINGS = (
    "num_environments",
    "num_steps",
    "num_epochs",
    "num_minibatches",
    "discount",
    "gae_lambda",
    "reward_clip",
    "time_limit",
    "time_limit_frames",
    "seed",
)


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
    log-probabilities of the first minibatch are those of collection. Environments, random generators, reward
    normaliser and unfinished episodes are part of `state_dict`: saved between two epochs, a run goes on exactly.

    In distributed training each rank plays its share of the environments, on levels and with noise of its own, and
    learns from its share of every minibatch; advantages and the scale of rewards are those of all ranks together.

    Args:
        environment: what is played; heist, easy, all training levels by default.
        num_environments: N, over all ranks.
        num_steps: T.
        num_epochs: passes over a rollout.
        num_minibatches: minibatches a pass; T x N, and each rank's share of it, must be a multiple.
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
        counts = {"num_environments": num_environments, "num_steps": num_steps, "num_epochs": num_epochs}
        for name, count in (counts | {"num_minibatches": num_minibatches}).items():
            if count < 1:
                raise ValueError(f"{name} is {count}: at least 1 is needed")
        for name, share in (("discount", discount), ("gae_lambda", gae_lambda)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}: choose 0 to 1")
        if not reward_clip > 0 or seed < 0:
            raise ValueError(f"reward_clip {reward_clip} must be above 0 and seed {seed} at least 0")
        if num_environments * num_steps % num_minibatches:
            raise ValueError(
                f"num_environments {num_environments} x num_steps {num_steps} = {num_environments * num_steps} frames "
                f"do not split into {num_minibatches} equal minibatches: change num_minibatches"
            )
        if time_limit is not None and time_limit < 1:
            raise ValueError(f"time_limit is {time_limit}: give at least 1 step, or null for none")
        if time_limit is not None and num_steps == 1:
            raise ValueError(
                "with num_steps 1 a time_limit can break off all that a rollout holds: set 2 or more steps"
            )
        if time_limit_frames is not None and time_limit is None:
            raise ValueError("time_limit_frames is set without a time_limit: set both or neither")
        self.environment = environment or EnvironmentSettings()
        refuse_held_out(self.environment.start_level)
        if critic is not None and self.environment.game != "heist":
            raise ValueError(f"the oracle knows heist only, not {self.environment.game}: set critic to null")
        self.critic = critic
        self.num_environments = num_environments
        self.num_steps = num_steps
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.discount = discount
        self.gae_lambda = gae_lambda
        self.reward_clip = reward_clip
        self.time_limit = time_limit
        self.time_limit_frames = time_limit_frames
        self.seed = seed
        self.env_steps = 0
        self.rollout: RolloutBatch | None = None
        self._player: RolloutPlayer | None = None
        self._random_state: dict[str, Any] | None = None

    @property
    def player(self) -> RolloutPlayer:
        """What plays this rank's environments."""
        assert self._player is not None, "setup() makes the environments"
        return self._player

    @property
    def tally(self) -> EpisodeTally:
        """This rank's episodes, whose `metrics` are those of all ranks."""
        return self.player.tally

    @property
    def frames_per_rollout(self) -> int:
        """T x N, over all ranks."""
        return self.num_steps * self.num_environments

    def setup(self, stage: str) -> None:
        """Make this rank's environments, in the process that uses them.

        Raises:
            ValueError: environments or minibatches that cannot be split over the ranks.
        """
        if self._player is not None:
            return
        ranks = world_size()
        if self.num_environments % ranks or self.frames_per_rollout // ranks % self.num_minibatches:
            raise ValueError(
                f"num_environments {self.num_environments} over {ranks} processes, in {self.num_minibatches} "
                f"minibatches of equal shares, cannot be: make it a multiple of {ranks} x num_minibatches, "
                "or change trainer.devices"
            )
        seed = rank_seed(self.seed)
        self._player = RolloutPlayer(
            VectorEnvironment(self.environment, self.num_environments // ranks, seed),
            self.num_steps,
            self.discount,
            self.gae_lambda,
            self.reward_clip,
            self.critic,
            seed,
        )

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
        orders = [self.player.shuffled_rows() for _ in range(self.num_epochs)]
        for order in orders:
            for rows in order.to(rollout.actions.device).chunk(self.num_minibatches):
                yield rollout.rows(rows)

    def collect(
        self, policy: RolloutPolicy, precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> RolloutBatch:
        """Play T steps in every environment and prepare what the update needs; for all ranks to call.

        Args:
            policy: what plays.
            precision: makes the context in which the network runs.

        Returns:
            T x N rows, time first; of this rank's environments.
        """
        limited = self.time_limit_frames is None or self.env_steps < self.time_limit_frames
        rollout = self.player.play(
            policy,
            precision,
            time_limit=self.time_limit if limited else None,
            critic_weight=0.0 if self.critic is None else self.critic.weight(self.env_steps),
        )
        with precision():
            reference_logits = self._reference_logits(policy, rollout.frames)
        self.env_steps += self.frames_per_rollout
        self.rollout = rollout._replace(reference_logits=reference_logits)
        return self.rollout

    @torch.no_grad()
    def _reference_logits(
        self, policy: RolloutPolicy, frames: UInt8[Tensor, "B 64 64 3"]
    ) -> Float[Tensor, "B A"] | None:
        chunks = []
        for chunk in frames.chunk(self.num_minibatches):
            logits = policy.reference_logits(chunk)
            if logits is None:
                return None
            chunks.append(logits)
        return torch.cat(chunks)

    def settings(self) -> dict[str, Any]:
        """What is configured, by name, and over how many processes; a checkpoint says it of its training."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        environment = self.environment.as_dict()
        del environment["num_threads"]  # changes the speed, not what is played
        critic = None if self.critic is None else vars(self.critic)
        return {**settings, "environment": environment, "critic": critic, "processes": world_size()}

    def state_dict(self) -> dict[str, Any]:
        """All that the next rollout depends on besides the network, as primitives and tensors; all ranks call it."""
        if self._player is None:
            return {}
        mine = {**self.player.state_dict(), "global_generators": global_random_state()}
        return {"settings": self.settings(), "env_steps": self.env_steps, "ranks": gather_states(mine)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; for all ranks to call.

        The global generators follow with `restore_global_generators`, when all is built that might draw from them.

        Raises:
            ValueError: the state does not fit what is configured now, or the ranks were given different ones.
        """
        changed_settings(state_dict["settings"], self.settings(), FIXED_SETTINGS)
        self.env_steps = state_dict["env_steps"]
        if len(set(gather(torch.tensor(self.env_steps)).tolist())) > 1:
            raise ValueError("the processes resume from different checkpoints: give ckpt_path a file that all see")
        mine = state_dict["ranks"][rank()]
        self.player.load_state_dict(mine)
        self._random_state = mine["global_generators"]

    def restore_global_generators(self) -> None:
        """Let torch, numpy and Python draw on as from the state loaded last, if one was; once."""
        if self._random_state is not None:
            set_global_random_state(self._random_state)
            self._random_state = None
