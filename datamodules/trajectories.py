"""Recorded trajectories of heist as shuffled windows, for a decision transformer.

How frames are stored was chosen by measurement, on two cores that others used at the same time: 256 easy episodes of
the oracle with 30 % random moves (48.6 frames each), windows of 30 frames at random places, one process.

| stored                                                  | bytes a frame | windows/s read |
|---------------------------------------------------------|---------------|----------------|
| each episode's frames, zlib                             | 329           | 1 185          |
| differing pixels, as they are                           | 773           | 7 946          |
| **differing pixels, zlib** (`datamodules.frame_patches`)| 191           | 2 060          |
| the level's seed and the actions, rendered again        | 1             | 337            |

Rendering again is exact, bit for bit, and takes next to nothing on disk, but reads slowest, since procgen has to play
an episode from its beginning, and would need procgen in every worker. The seeds and actions are stored anyway.

With labels a step takes 149 (random play) to 307 bytes (the oracle's short episodes) on disk, by the training caches of
a mixture of six players: 0.15 to 0.31 GB for 1 M. On the same two cores, with a load of 6 to 8 from others and one
thread of torch's: 1 119 frames/s recorded of the oracle, 1 750 of random play, 326 of an agent (CustomCNN, bf16);
batches of 64 windows of 30 frames at 1 800 windows/s in the training process, and 440 with two workers, which pass
frames on through shared memory and pay only where cores are free. Features (256 numbers) without frames: 28 000.
"""

import dataclasses
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.activation_loaders import Position
from datamodules.cache import ActivationCache, refuse_if_too_large
from datamodules.learner import check_learner
from datamodules.minari_format import MinariRecorder
from datamodules.trajectory_features import FeatureRecorder, FeatureTap, open_features
from datamodules.trajectory_loaders import OrderedTrajectoryLoader, TrajectoryLoader
from datamodules.trajectory_recorder import (
    ORACLE,
    RANDOM,
    TRAJECTORY_LABELS,
    TrajectoryRecorder,
    TrajectorySource,
)
from datamodules.trajectory_store import TrajectoryStore
from environments import VALIDATION_LEVELS, EnvironmentSettings, refuse_held_out
from networks import DEFAULT_PRECISION, Precision, TappedAgent, load_agent

_ENVIRONMENT = EnvironmentSettings()
_SOURCES = (
    TrajectorySource("oracle", ORACLE, share=0.3),
    TrajectorySource("oracle_noisy", ORACLE, share=0.5, epsilon=0.1, hold=4),
    TrajectorySource("random", RANDOM, share=0.2, hold=4),
)
_LABELS = ("direction", "target", "directions", "oracle_action", "main_action", "stuck", "source")

Split = Literal["train", "validation"]


class SourceCounts(NamedTuple):
    """What one source made of its part of a split.

    Attributes:
        name: of the source.
        frames, episodes: how many.
        solved: episodes that reached the gem.
        cut: episodes broken off at `max_steps`; they count as unsolved.
    """

    name: str
    frames: int
    episodes: int
    solved: int
    cut: int


class TrajectoryDataModule(LightningDataModule):
    """Records episodes of a mixture of players once and feeds windows of them; held-out levels for validation.

    Each source has a cache of its own on disk, keyed by everything that decides its episodes; validation is recorded
    with the same sources (imported ones excepted) on its own levels, whatever `seed` is. A training epoch shows every
    step about once, in windows that are drawn anew (see `draw_windows`), and goes on in its middle after a resume.
    Validation windows are the same every time, and show every step once.

    Args:
        sources: who plays; their names must differ.
        environment: heist; its levels are those of training.
        num_frames: about how many frames of training episodes in all.
        validation_frames: likewise.
        context: T, steps of a window.
        batch_size: windows of a training batch on each process.
        validation_batch_size: windows of a validation batch.
        labels: names of `datamodules.trajectory_recorder.TRAJECTORY_LABELS`, and `source`, that batches carry.
        discount: gamma of returns to go.
        max_steps: episodes are cut here and count as unsolved: their returns to go are 0.
        features: the tap of a frozen agent whose activations batches carry beside (or, with `frames` false, instead of)
            the frames; computed once and kept on disk with the trajectories, in float16.
        frames: whether windows carry frames.
        precision: in which agents play and features are computed.
        num_workers: processes that read beside the training one; 0 reads in it.
        seed: of training levels, play and order.
        cache_dir: folder of all caches.

    Raises:
        ValueError: an argument that cannot be meant, named with the mend.
    """

    def __init__(
        self,
        sources: tuple[TrajectorySource, ...] | list[TrajectorySource] = _SOURCES,
        environment: EnvironmentSettings = _ENVIRONMENT,
        num_frames: int = 200_000,
        validation_frames: int = 10_000,
        context: int = 30,
        batch_size: int = 64,
        validation_batch_size: int = 64,
        labels: tuple[str, ...] | list[str] = _LABELS,
        discount: float = 0.98,
        max_steps: int = 300,
        features: FeatureTap | None = None,
        frames: bool = True,
        precision: Precision = DEFAULT_PRECISION,
        num_workers: int = 0,
        seed: int = 0,
        cache_dir: str = ".cache/trajectories",
    ) -> None:
        super().__init__()
        names = [source.name for source in sources]
        if len(set(names)) < len(names) or all(source.imported for source in sources):
            raise ValueError(f"sources {names}: give at least one that plays, each with a name of its own")
        if environment.game != "heist":
            raise ValueError(f"trajectories are labelled by heist's oracle, {environment.game} has none: choose heist")
        refuse_held_out(environment.start_level)
        self.split_frames: dict[Split, int] = {"train": num_frames, "validation": validation_frames}
        sizes = {"num_frames": num_frames, "validation_frames": validation_frames}
        sizes |= {"context": context, "batch_size": batch_size, "validation_batch_size": validation_batch_size}
        for name, value in (sizes | {"max_steps": max_steps}).items():
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1 is needed")
        for name in labels:
            if name not in (*TRAJECTORY_LABELS, "source"):
                raise ValueError(
                    f"there is no label {name!r}: choose among {', '.join((*TRAJECTORY_LABELS, 'source'))}"
                )
        if not 0 < discount <= 1 or num_workers < 0:
            raise ValueError(f"discount {discount} must lie in 0 to 1 and num_workers {num_workers} be at least 0")
        self.sources, self.environment, self.context = tuple(sources), environment, context
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size
        self.labels, self.discount, self.max_steps = tuple(labels), discount, max_steps
        self.features, self.frames, self.precision, self.num_workers = features, frames, precision, num_workers
        self.seed, self.cache_dir = seed, cache_dir
        self._position = Position()
        self._stores: dict[Split, TrajectoryStore] = {}

    @cached_property
    def agents(self) -> dict[str, TappedAgent]:
        """The frozen agents that play or see, by the paths of their weights."""
        paths = {source.player for source in self.sources if not source.imported} - {ORACLE, RANDOM}
        paths |= set() if self.features is None else {self.features.agent}
        try:
            return {path: load_agent(path).requires_grad_(False) for path in sorted(paths)}
        except ValueError as error:
            raise ValueError(f"data.init_args.sources or features: {error}") from error

    @property
    def feature_shape(self) -> tuple[int, ...] | None:
        """Shape of one frame's features, (C, H, W) or (C,); None without.

        Raises:
            ValueError: a tap that the agent does not have.
        """
        if self.features is None:
            return None
        agent = self.agents[self.features.agent]
        agent.check_taps([self.features.tap])
        return agent.taps[self.features.tap]

    def prepare_data(self) -> None:
        """Check that what learns fits, what is on disk and what would have to be, then record what the run needs."""
        check_learner(self)
        stage = self.trainer.state.fn if self.trainer is not None else None
        splits: tuple[Split, ...] = ("validation",) if stage == "validate" else ("train", "validation")
        caches = [cache for split in splits for cache in self._caches[split] + self._feature_caches[split]]
        for cache in caches:
            cache.check()
        refuse_if_too_large(caches)
        for cache in caches:
            cache.build()

    def store(self, split: Split) -> TrajectoryStore:
        """The episodes of a split; recorded now if they have not been."""
        if split not in self._stores:
            for cache in self._caches[split] + self._feature_caches[split]:
                cache.build()
            opened = [cache.open() for cache in self._caches[split]]
            played = [index for index, source in enumerate(self.sources) if split == "train" or not source.imported]
            features = [
                part
                for cache, shards in zip(self._feature_caches[split], opened, strict=False)
                for part in open_features(cache, shards)
            ]
            self._stores[split] = TrajectoryStore(
                [shard for shards in opened for shard in shards],
                [index for index, shards in zip(played, opened, strict=True) for _ in shards],
                discount=self.discount,
                labels=self.labels,
                features=features or None,
                frames=self.frames,
            )
            self._tell(split)
        return self._stores[split]

    def counts(self, split: Split) -> list[SourceCounts]:
        """Frames, episodes and solved episodes of each source, in the order of `sources`."""
        store = self.store(split)
        found = []
        for index, source in enumerate(self.sources):
            mine = store.source == index
            numbers = (store.steps[mine].sum(), mine.sum(), store.solved[mine].sum(), store.cut[mine].sum())
            found.append(SourceCounts(source.name, *map(int, numbers)))
        return found

    def solved_share(self, split: Split) -> float:
        """Share of a split's episodes, of all sources together, that reach the gem."""
        return float(self.store(split).solved.mean())

    def train_dataloader(self) -> TrajectoryLoader:
        """Shuffled whole batches."""
        return TrajectoryLoader(
            self.store("train"), self.context, self.batch_size, seed=self.seed, position=self._position,
            num_workers=self.num_workers, **self._ranks(),
        ).limited(self.trainer)  # fmt: skip

    def val_dataloader(self) -> OrderedTrajectoryLoader:
        """Every step of the validation episodes once, in order."""
        return OrderedTrajectoryLoader(
            self.store("validation"), self.context, self.validation_batch_size,
            num_workers=self.num_workers, **self._ranks(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data."""
        return vars(self._position) | self._drawn_from()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where training stood; other episodes or batches, or another world size, begin the epoch again."""
        # Checkpoints of before tell less of this
        same = all(state_dict.get(name, value) == value for name, value in self._drawn_from().items())
        if not same:
            rank_zero_info("the data, the batches or the number of processes changed: this epoch's data begin again")
        self._position.epoch = state_dict["epoch"]
        self._position.batch = state_dict["batch"] if same else 0

    def _drawn_from(self) -> dict[str, Any]:
        """Everything that an epoch's batches depend on, as primitives: a place among those of others means nothing."""
        return {
            "batch_size": self.batch_size,
            "world_size": self._ranks()["world"],
            "context": self.context,
            "seed": self.seed,
            "episodes": [f"{cache.folder.name}-{cache.frames}" for cache in self._caches["train"]],  # what decides them
        }

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}

    def _tell(self, split: Split) -> None:
        parts = [f"{c.name} {c.solved}/{c.episodes}" for c in self.counts(split)]
        frames = int(self._stores[split].steps.sum())
        rank_zero_info(f"{split}: {frames} frames of trajectories, episodes solved: {', '.join(parts)}")

    @cached_property
    def _caches(self) -> dict[Split, list[ActivationCache]]:
        caches: dict[Split, list[ActivationCache]] = {}
        for split, frames in self.split_frames.items():
            settings, seed, sources = self.environment, self.seed, self.sources
            if split == "validation":
                seed = 0
                settings = dataclasses.replace(
                    settings, start_level=VALIDATION_LEVELS.start, num_levels=len(VALIDATION_LEVELS)
                )
                sources = tuple(source for source in sources if not source.imported)
            total = sum(source.share for source in sources)
            caches[split] = []
            for source in sources:
                count = max(1, round(frames * source.share / total))
                recorder = self._recorder(source, settings, seed, count)
                caches[split].append(ActivationCache(self.cache_dir, f"{split}-{source.name}", recorder, count))
        return caches

    @cached_property
    def _feature_caches(self) -> dict[Split, list[ActivationCache]]:
        """None of a split, or one for each of its trajectory caches."""
        if self.features is None:
            return {split: [] for split in self._caches}
        agent, tap = self.agents[self.features.agent], self.features.tap
        return {
            split: [
                ActivationCache(
                    self.cache_dir,
                    f"{cache.name}-features",
                    FeatureRecorder(cache, agent, tap, self.precision, self._device),
                    cache.frames,
                )
                for cache in caches
            ]
            for split, caches in self._caches.items()
        }

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    def _recorder(
        self, source: TrajectorySource, settings: EnvironmentSettings, seed: int, frames: int
    ) -> TrajectoryRecorder | MinariRecorder:
        if source.imported:
            return MinariRecorder(source.player, settings, frames)
        return TrajectoryRecorder(
            source, self.agents.get(source.player), settings,
            max_steps=self.max_steps, precision=self.precision, seed=seed, device=self._device,
        )  # fmt: skip
