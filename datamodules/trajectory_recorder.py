"""Playing whole episodes with the oracle, an agent or at random, and keeping them compactly."""

import dataclasses
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8

from datamodules.frame_patches import FramePacker
from datamodules.recorder import Rows
from environments import EnvironmentSettings, VectorEnvironment
from environments.heist import ACTION_STEPS, STAY, Labels, label_states
from networks import DEFAULT_PRECISION, Precision, TappedAgent, autocast, hash_tensors, sample_actions
from networks.padding import padded_batch

TRAJECTORY_LABELS = [*(f.name for f in dataclasses.fields(Labels) if f.name not in ("level", "world_dim")), "stuck"]
"""Names of stored labels: the fields of `environments.heist.Labels` that differ within a level, and `stuck`: whether
the action before left the player where it was. The oracle's action alone is half noise as a target; `directions`,
`oracle_action` and `stuck` are what `datamodules.imitation.target_distribution` is made of."""

ORACLE, RANDOM = "oracle", "random"
_ENVIRONMENTS = 64
_SHORT = 32  # steps of a short episode: a small block keeps no more environments busy
BLOCK_FRAMES = 16_384
_PRIOR = 8  # episodes as long as the limit, in the first guess of their usual length
_SAMPLE_FRAMES = 256  # played to find out what a frame takes on disk


@dataclasses.dataclass(frozen=True)
class TrajectorySource:
    """One way of playing, and how much of the data it makes.

    Attributes:
        name: by which metrics and summaries know it.
        player: `oracle`, `random` (any of the nine moves), the path of an agent's weights, or the folder of a Minari
            dataset (`datamodules.minari_format`), whose episodes are taken as they are, for training only.
        share: of the frames, relative to the other sources' shares.
        temperature: divides an agent's logits; 0 plays greedily.
        epsilon: chance at each step that one random move begins, whoever plays.
        hold: steps for which a random move is kept up: single ones hardly leave the place.
    """

    name: str
    player: str
    share: float = 1.0
    temperature: float = 1.0
    epsilon: float = 0.0
    hold: int = 1

    def __post_init__(self) -> None:
        if self.share <= 0 or self.temperature < 0 or not 0 <= self.epsilon <= 1 or self.hold < 1:
            raise ValueError(
                f"source {self.name!r}: share {self.share} must be above 0, temperature {self.temperature} at least 0, "
                f"epsilon {self.epsilon} in 0 to 1 and hold {self.hold} at least 1"
            )

    @property
    def imported(self) -> bool:
        """Whether its episodes are read from a dataset."""
        return self.player not in (ORACLE, RANDOM) and Path(self.player).is_dir()


class TrajectoryRecorder:
    """Records blocks of whole episodes, each from its own seeds: block i is the same whatever was recorded before it.

    Levels are drawn from the settings' range, dealt until they will probably have the frames asked for, and all played
    to their ends: none is preferred for being short, and a block has about as many frames as asked for. An episode
    that reaches `max_steps` is cut and counts as one that never reaches the gem, as does one that the game's own
    time-out ends.

    Columns of a block of E episodes with R steps in all: `episodes/level`, `episodes/steps`, `episodes/solved`,
    `episodes/cut` [E]; `actions` [R]; `labels/NAME` [R ...] for `TRAJECTORY_LABELS`; `frames/...` as
    `datamodules.frame_patches.PackedFrames` takes them.

    Args:
        source: how it is played.
        agent: who plays, where the source names an agent; moved to `device`.
        settings: heist.
        max_steps: cut an episode here.
        precision: of the agent's passes.
        seed: fixes levels, moves and noise.

    Raises:
        ValueError: another game than heist.
    """

    taps: tuple[str, ...] = ()

    def __init__(
        self,
        source: TrajectorySource,
        agent: TappedAgent | None,
        settings: EnvironmentSettings,
        *,
        max_steps: int,
        precision: Precision = DEFAULT_PRECISION,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if settings.game != "heist":
            raise ValueError(f"trajectories are labelled by heist's oracle, {settings.game} has none: choose heist")
        assert (agent is None) == (source.player in (ORACLE, RANDOM))
        self.source, self.settings, self.max_steps = source, settings, max_steps
        self.agent = None if agent is None else agent.to(device)
        self.precision, self.seed, self.device = precision, seed, torch.device(device)
        self._environment: VectorEnvironment | None = None

    @property
    def forks(self) -> bool:
        """Whether blocks can be made in forked processes: not by an agent on a GPU."""
        return self.agent is None or self.device.type == "cpu"

    @property
    def frames_per_block(self) -> int:
        """About as many frames a block has: its episodes are whole."""
        return BLOCK_FRAMES

    def description(self) -> dict[str, Any]:
        """Everything that decides the episodes, as primitives; shares, and the path of an agent's file, do not."""
        play = {k: v for k, v in dataclasses.asdict(self.source).items() if k not in ("share", "player", "name")}
        known: dict[str, Any] = {"player": self.source.player}
        if self.agent is not None:
            known = {
                "agent": hash_tensors(self.agent.state_dict()),
                "architecture": {"name": self.agent.architecture, **self.agent.config()},
                "precision": self.precision,
            }
        else:
            del play["temperature"]
        return {
            "format": 1,
            **known,
            "play": play,
            "environment": {k: v for k, v in self.settings.as_dict().items() if k != "num_threads"},
            "environments": _ENVIRONMENTS,
            "block": BLOCK_FRAMES,
            "max_steps": self.max_steps,
            "labels": TRAJECTORY_LABELS,
            "seed": self.seed,
        }

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        """Record block `index`; arguments as of `Recorder.block`, `frames` being about how many."""
        wanted = self.frames_per_block if frames is None else frames
        count = min(_ENVIRONMENTS, max(1, wanted // _SHORT))
        if self._environment is None or self._environment.num_environments != count:
            self.close()
            self._environment = VectorEnvironment(self.settings, count)
        # What tells sources apart enters, so that they play different levels; their order in the configuration does not
        text = repr(sorted((k, v) for k, v in self.description().items() if k not in ("environment", "seed")))
        rng = np.random.default_rng((self.seed, index, zlib.crc32(text.encode())))
        return _Block(self, self._environment, rng, wanted, progress).play()

    def choose(
        self, frames: UInt8[np.ndarray, "n 64 64 3"], labels: Labels, rng: np.random.Generator
    ) -> Int[np.ndarray, " n"]:
        """What the source's player does, without the random moves of `epsilon`."""
        if self.source.player == RANDOM:
            return rng.integers(len(ACTION_STEPS), size=len(frames))
        if self.agent is None:
            return labels.oracle_action
        with torch.inference_mode(), autocast(self.precision, self.device):
            logits = self.agent(padded_batch(frames).to(self.device)).logits
        assert logits is not None
        logits = logits[: len(frames)]
        if self.source.temperature == 0:
            return sample_actions(logits, None).cpu().numpy()
        uniforms = torch.from_numpy(rng.random(logits.shape, dtype=np.float32)).to(logits.device)
        return sample_actions(logits / self.source.temperature, uniforms).cpu().numpy()

    def frame_bytes(self) -> int:
        """Bytes that a frame takes on average, found by recording a few."""
        rows = self.block(0, _SAMPLE_FRAMES)
        return -(-sum(column.nbytes for column in rows.values()) // len(rows["actions"]))

    def close(self) -> None:
        """Free the environment; the next block makes a new one."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None


@dataclasses.dataclass
class RecordedEpisode:
    """What is known so far of an episode: its level, frames, actions and labels by step, and how it ended."""

    level: int
    packer: FramePacker
    actions: list[int] = dataclasses.field(default_factory=list)
    labels: list[tuple[Shaped[np.ndarray, "..."], ...]] = dataclasses.field(default_factory=list)
    solved: bool = False
    cut: bool = False


class _Block:
    """The book-keeping of one block: which slot plays which level, and what came of it."""

    def __init__(
        self,
        recorder: TrajectoryRecorder,
        environment: VectorEnvironment,
        rng: np.random.Generator,
        wanted: int,
        progress: Callable[[int], object] | None,
    ) -> None:
        self._recorder, self._environment, self._rng = recorder, environment, rng
        self._wanted, self._progress = wanted, progress
        count = environment.num_environments
        self._dealt: list[RecordedEpisode] = []
        self._playing = np.full(count, -1)  # index into dealt; -1 is idle
        self._held = np.zeros(count, dtype=np.int64)  # steps for which a random move is still to be kept up
        self._random = np.full(count, STAY)
        self._steps = np.zeros(count, dtype=np.int64)
        self._ended: list[int] = []  # steps of the episodes that are over
        self._told = 0

    def play(self) -> Rows:
        """Deal levels until those dealt will have frames enough, and play these to their ends."""
        environment = self._environment
        frames = self._deal()
        positions = np.full((len(self._playing), 2), np.nan)
        while len(slots := np.flatnonzero(self._playing >= 0)):
            labels = label_states(environment.get_states(slots.tolist()))
            stuck = np.abs(labels.position - positions[slots]).max(-1) < 0.01  # False beside NaN: at the first step
            positions[slots] = labels.position
            actions = np.full(len(self._playing), STAY)
            actions[slots] = self._disturb(slots, self._recorder.choose(frames[slots], labels, self._rng))
            self._keep(slots, frames, labels, stuck, actions)
            environment.act(actions)
            # The last action's reward comes beside the first frame of what the game would play next.
            reward, frames, first = environment.observe()
            over = slots[first[slots] | (self._steps[slots] >= self._recorder.max_steps)]
            for slot in over.tolist():
                episode = self._dealt[self._playing[slot]]
                episode.solved = bool(first[slot] and reward[slot] > 0)
                episode.cut = not first[slot]
                episode.packer.close()
            if len(over):
                self._playing[over] = -1
                self._ended.extend(self._steps[over].tolist())
                positions[over] = np.nan
                frames = self._deal()
        if self._progress is not None:
            self._progress(self._wanted - self._told)
        return episode_columns(self._dealt)

    def _disturb(self, slots: Int[np.ndarray, " n"], actions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        source = self._recorder.source
        begins = (self._held[slots] == 0) & (self._rng.random(len(slots)) < source.epsilon)
        moves = self._rng.integers(len(ACTION_STEPS), size=len(slots))
        if source.player == RANDOM:
            begins, moves = self._held[slots] == 0, actions
        self._random[slots] = np.where(begins, moves, self._random[slots])
        self._held[slots] = np.where(begins, source.hold, self._held[slots])
        disturbed = np.where(self._held[slots] > 0, self._random[slots], actions)
        self._held[slots] = np.maximum(self._held[slots] - 1, 0)
        return disturbed

    def _keep(
        self,
        slots: Int[np.ndarray, " n"],
        frames: UInt8[np.ndarray, "N 64 64 3"],
        labels: Labels,
        stuck: Bool[np.ndarray, " n"],
        actions: Int[np.ndarray, " N"],
    ) -> None:
        columns = [getattr(labels, name) for name in TRAJECTORY_LABELS[:-1]] + [stuck]
        for slot, row in zip(slots.tolist(), zip(*columns, strict=True), strict=True):
            episode = self._dealt[self._playing[slot]]
            episode.packer.add(frames[slot])
            episode.actions.append(int(actions[slot]))
            episode.labels.append(row)
        self._steps[slots] += 1
        if self._progress is not None and self._told < self._wanted:
            new = min(len(slots), self._wanted - self._told)
            self._told += new
            self._progress(new)

    def _deal(self) -> UInt8[np.ndarray, "N 64 64 3"]:
        """Give free slots new levels while more frames are needed; returns the frames to act on."""
        busy = self._playing >= 0
        # Those still going on count with what they have played: the mean of the ended alone would be that of short
        # ones. Until some have ended, the limit is the guess.
        played = sum(self._ended) + int(self._steps[busy].sum())
        limit = self._recorder.max_steps
        usual = min(limit, (played + _PRIOR * limit) / (len(self._ended) + _PRIOR))
        expected = played + np.minimum(usual, limit - self._steps[busy]).sum()
        count = min(int((~busy).sum()), max(0, math.ceil((self._wanted - expected) / usual)))
        slots = np.flatnonzero(~busy)[:count]
        settings = self._environment.settings
        levels = settings.start_level + self._rng.integers(settings.num_levels, size=count)
        self._environment.play_levels(levels, slots.tolist())
        frames = self._environment.observe()[1]
        for slot, level in zip(slots.tolist(), levels.tolist(), strict=True):
            self._playing[slot] = len(self._dealt)
            self._dealt.append(RecordedEpisode(level, FramePacker(frames[slot])))
        self._held[slots] = self._steps[slots] = 0
        return frames


def episode_columns(episodes: list[RecordedEpisode]) -> Rows:
    """Episodes as columns; labels in the smallest type that holds what heist can say."""
    packers = [episode.packer for episode in episodes]
    chunks = [chunk for packer in packers for chunk in packer.chunks]
    arrays: dict[str, Shaped[np.ndarray, "..."]] = {
        "episodes/level": np.array([episode.level for episode in episodes]),
        "episodes/steps": np.array([len(episode.actions) for episode in episodes], dtype=np.int32),
        "episodes/solved": np.array([episode.solved for episode in episodes]),
        "episodes/cut": np.array([episode.cut for episode in episodes]),
        "actions": np.concatenate([np.array(episode.actions, dtype=np.uint8) for episode in episodes]),
        "frames/first": np.frombuffer(b"".join(packer.first for packer in packers), np.uint8),
        "frames/first_end": np.cumsum([len(packer.first) for packer in packers]),
        "frames/patches": np.frombuffer(b"".join(chunks), np.uint8),
        "frames/patches_end": np.cumsum([len(chunk) for chunk in chunks]),
        "frames/changed": np.concatenate([np.array(packer.changed, dtype=np.int16) for packer in packers]),
    }
    rows = [row for episode in episodes for row in episode.labels]
    for name, column in zip(TRAJECTORY_LABELS, zip(*rows, strict=True), strict=True):
        values = np.array(column)
        kind = np.float32 if name == "position" else bool if values.dtype == bool else np.int16
        arrays[f"labels/{name}"] = values.astype(kind)
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
