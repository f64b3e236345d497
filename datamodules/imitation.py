"""Frames of heist with the oracle's advice, on noisy oracle play and on the student's own play (DAgger).

One Lightning epoch plays a little and trains on the frames in random order; the next one plays other levels. The target
is a distribution over actions, since the oracle's single action is half noise (a sub-cell correction that can hardly be
seen): most of it lies on the main direction of the shortest paths, some on the oracle's own steering action, and some
on the diagonals that contain the main direction. Those slide along walls at the same speed, and free a player that a
corner holds by an offset of less than a pixel; where the last action did not move the player, the steering action gets
most of it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from datamodules.ranks import rank, world_size
from environments import FRAME_SHAPE, NUM_ACTIONS, EnvironmentSettings, State, VectorEnvironment, refuse_held_out
from environments.heist import ACTION_STEPS, DIRECTION_ACTIONS, label_states, scatter_player
from networks import DEFAULT_PRECISION, Policy, Precision, autocast, sample_actions

_DIRECTION_BITS = np.array([1 << bit for bit in range(4)])
_DIAGONALS = np.zeros((NUM_ACTIONS, NUM_ACTIONS), dtype=np.float32)
"""1 where the column's diagonal move contains the row's straight one."""
for _straight, _slides in ((1, (0, 2)), (3, (0, 6)), (5, (2, 8)), (7, (6, 8))):
    _DIAGONALS[_straight, list(_slides)] = 1


class ImitationBatch(NamedTuple):
    """Frames and the distribution over actions that is to be learnt on each."""

    frames: UInt8[Tensor, "B 64 64 3"]
    targets: Float[Tensor, "B A"]


class PlayStatistics(NamedTuple):
    """How the student did on the frames collected for one epoch, all of them new to it.

    Attributes:
        accuracy: share of its frames on which its likeliest action was the target's likeliest; NaN before it plays.
        env_steps: frames played so far, everybody's.
    """

    accuracy: float
    env_steps: int


class ImitationDataModule(L.LightningDataModule):
    """Plays heist with the oracle and the student side by side and yields labelled batches.

    The first environments are the oracle's, with random moves mixed in, the others the student's own. Each plays only
    some steps of a level, more of them the longer the way to the gem is, mostly from a random stage and place of it
    (`scatter_player`): there are more mazes to be learnt than play from the start would meet, and no stuck student
    fills the data with one picture.

    Args:
        environment: what is played; it must be heist.
        num_environments: environments stepped together, on each rank.
        student_environments: how many of them the student plays.
        steps_per_epoch: steps of all environments per epoch.
        batch_size: frames per optimiser step.
        samples_per_frame: how often a frame is trained on.
        random_move_share: share of the oracle's moves replaced by random ones.
        stay: a level is left with probability 1 / (stay x moves to the gem) at each step (moves counted as 4 at least):
            easy mazes of a few cells are most of the levels and soon learnt.
        scattered_share: share of levels begun at a random stage and place; the others begin at their start.
        student_from: frames played before the student plays its environments; the oracle does until then.
        precision: of the student's play; take the trainer's.
        seed: of environments, noise and sampling.
    """

    def __init__(
        self,
        environment: EnvironmentSettings | None = None,
        num_environments: int = 128,
        student_environments: int = 64,
        steps_per_epoch: int = 64,
        batch_size: int = 128,
        samples_per_frame: int = 1,
        random_move_share: float = 0.3,
        stay: float = 0.5,
        scattered_share: float = 0.9,
        student_from: int = 100_000,
        precision: Precision = DEFAULT_PRECISION,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.environment = environment or EnvironmentSettings()
        refuse_held_out(self.environment.start_level)
        if self.environment.game != "heist":
            raise ValueError(f"the oracle plays heist only, not {self.environment.game}: train without a warm start")
        counts = {"num_environments": num_environments, "steps_per_epoch": steps_per_epoch}
        for name, count in (counts | {"batch_size": batch_size, "samples_per_frame": samples_per_frame}).items():
            if count < 1:
                raise ValueError(f"{name} is {count}: at least 1 is needed")
        if not 0 <= random_move_share <= 1:
            raise ValueError(f"random_move_share is {random_move_share}: choose 0 to 1")
        if not 0 <= student_environments <= num_environments:
            raise ValueError(f"student_environments {student_environments} must lie in 0 to {num_environments}")
        per_epoch = num_environments * steps_per_epoch
        if per_epoch % batch_size:
            raise ValueError(
                f"an epoch plays num_environments x steps_per_epoch = {per_epoch} frames: "
                f"choose a batch_size that divides them, not {batch_size}"
            )
        if stay <= 0 or not 0 <= scattered_share <= 1:
            raise ValueError(f"stay {stay} must be above 0 and scattered_share {scattered_share} in 0 to 1")
        self.num_environments = num_environments
        self.students = slice(num_environments - student_environments, num_environments)
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.samples_per_frame = samples_per_frame
        self.batches_per_epoch = per_epoch * samples_per_frame // batch_size
        self.random_move_share = random_move_share
        self.stay = stay
        self.scattered_share = scattered_share
        self.student_from = student_from
        self.precision: Precision = precision
        self.seed = seed
        self.env_steps = 0
        self.statistics = PlayStatistics(float("nan"), 0)
        self._frames = torch.empty(per_epoch, *FRAME_SHAPE, dtype=torch.uint8)
        self._targets = torch.empty(per_epoch, NUM_ACTIONS)
        self._env: VectorEnvironment | None = None
        self._rng = np.random.default_rng(seed)

    def train_dataloader(self) -> DataLoader[ImitationBatch]:
        """Whole batches; each pass over the loader plays one epoch first."""
        return DataLoader(_Epoch(self), batch_size=None)

    def teardown(self, stage: str) -> None:
        """Close the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def state_dict(self) -> dict[str, Any]:
        """Frames played; a resumed run plays new levels."""
        return {"env_steps": self.env_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from where the checkpoint stood."""
        self.env_steps = state_dict["env_steps"]

    def batches(self) -> Iterator[ImitationBatch]:
        """Play one epoch, then yield its frames in random order, as often as asked for."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        if self._env is None:  # only now is it known how many frames a resumed run has played
            self._rng = np.random.default_rng([self.seed, rank(), self.env_steps])
            self._env = VectorEnvironment(self.environment, self.num_environments, int(self._rng.integers(2**31 - 1)))
            self._position = np.zeros((self.num_environments, 2))
        self._play(self._env, module.agent, module.device)
        generator = torch.Generator().manual_seed(int(self._rng.integers(2**63 - 1)))
        for _ in range(self.samples_per_frame):
            for chosen in torch.randperm(len(self._frames), generator=generator).split(self.batch_size):
                yield ImitationBatch(self._frames[chosen], self._targets[chosen])

    @torch.no_grad()
    def _play(self, env: VectorEnvironment, student: Policy, device: torch.device) -> None:
        accepted = judged = 0
        for step in range(self.steps_per_epoch):
            _, frames, first = env.observe()
            states = env.get_states()
            fresh = np.flatnonzero(first & (self._rng.random(self.num_environments) < self.scattered_share)).tolist()
            if fresh:
                for slot in fresh:
                    states[slot] = scatter_player(State.from_bytes(states[slot]), self._rng).to_bytes()
                env.set_states([states[slot] for slot in fresh], fresh)
                _, frames, _ = env.observe()
            labels = label_states(states)
            positions = labels.position
            stuck = ~first & (np.abs(positions - self._position).max(-1) < 0.01)
            targets = target_distribution(labels.directions, labels.oracle_action, stuck)
            rows = slice(step * self.num_environments, (step + 1) * self.num_environments)
            self._frames[rows] = torch.from_numpy(frames)
            self._targets[rows] = torch.from_numpy(targets)
            random = self._rng.random(self.num_environments) < self.random_move_share
            moves = self._rng.integers(len(ACTION_STEPS), size=self.num_environments)
            actions = np.where(random, moves, labels.oracle_action)
            if self.env_steps >= self.student_from:
                seen = torch.from_numpy(frames[self.students]).to(device)
                with autocast(self.precision, device):
                    logits = student(seen).logits
                assert logits is not None
                noise = torch.from_numpy(self._rng.random(logits.shape, dtype=np.float32)).to(device)
                actions[self.students] = sample_actions(logits, noise).cpu().numpy()
                best = logits.argmax(-1).cpu().numpy()
                wanted = targets[self.students]
                accepted += int((wanted[np.arange(len(best)), best] >= wanted.max(-1)).sum())
                judged += len(best)
            leaves = self._rng.random(self.num_environments) * self.stay * labels.total_length.clip(4) < 1
            actions[leaves] = -1  # the next level
            self._position = positions
            env.act(actions)
            self.env_steps += self.num_environments * world_size()
        self.statistics = PlayStatistics(accepted / judged if judged else float("nan"), self.env_steps)


def target_distribution(
    directions: Int[np.ndarray, " N"], steering: Int[np.ndarray, " N"], stuck: Bool[np.ndarray, " N"]
) -> Float32[np.ndarray, "N A"]:
    """What the student is to do.

    Args:
        directions: bit masks of all shortest first moves (`Labels.directions`).
        steering: the oracle's own action (`Labels.oracle_action`).
        stuck: whether the last action failed to move the player.

    Returns:
        [N A], rows summing to 1: half on the main directions, a quarter on steering, a quarter on the diagonals that
        contain a main direction; where stuck 0.1, 0.8 and 0.1; steering alone where there is no direction.
    """
    main = (directions[:, None] & _DIRECTION_BITS > 0) @ np.eye(NUM_ACTIONS, dtype=np.float32)[list(DIRECTION_ACTIONS)]
    slide = (main @ _DIAGONALS > 0).astype(np.float32)
    steer = np.eye(NUM_ACTIONS, dtype=np.float32)[steering]
    moving = np.stack([np.where(stuck, 0.1, 0.5), np.where(stuck, 0.8, 0.25), np.where(stuck, 0.1, 0.25)], axis=-1)
    weights = np.where((directions > 0)[:, None], moving, [[0.0, 1.0, 0.0]]).astype(np.float32)
    parts = np.stack([main, steer, slide], axis=1)
    parts /= parts.sum(-1, keepdims=True).clip(1)
    return np.einsum("np,npa->na", weights, parts)


class _Epoch(IterableDataset[ImitationBatch]):
    """A loader with a length: without one, Lightning would prefetch and play with a stale student."""

    def __init__(self, data: ImitationDataModule) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.batches_per_epoch

    def __iter__(self) -> Iterator[ImitationBatch]:
        yield from self._data.batches()
