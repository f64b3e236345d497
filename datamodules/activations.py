"""Activations of a frozen agent, from a cache or streamed, as one batch type for autoencoders, probes and pictures."""

import dataclasses
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.activation_loaders import CacheLoader, Position, StreamLoader, ValidationLoader
from datamodules.cache import ActivationCache, Statistics, refuse_if_too_large, statistics
from datamodules.learner import check_learner
from datamodules.recorder import MAX_POSITIONS, PlaySettings, Recorder, Rows
from environments import VALIDATION_LEVELS, EnvironmentSettings, refuse_held_out
from networks import DEFAULT_PRECISION, Precision, TappedNetwork, load_network

_ENVIRONMENT = EnvironmentSettings()
_PLAY = PlaySettings()


class ActivationDataModule(LightningDataModule):
    """Plays an agent on training levels and feeds what its taps yield; validates on levels set apart.

    Training batches come from a cache (recorded before the first step, found again by later runs) or from a stream
    (recorded while training). Validation batches are always whole maps with frames, and in heist with the mask of
    positions inside the maze. Their cache is recorded when they are first asked for; `seed` does not enter it, so runs
    with other seeds are validated on the same frames.

    Args:
        agent: path of the weights of an agent, or of a decision transformer, which plays for its `asked_return`.
        taps: recorded places of the agent.
        source: cache or stream.
        environment: what is played; its levels are those of training.
        num_frames: training frames in the cache, or streamed in each epoch.
        validation_frames: frames of the validation cache.
        positions_per_frame: a training row is one of so many random positions of each frame (at most 64, else a batch
            from an early tap would show one frame); null for whole maps.
        batch_size: training rows of a batch on each process.
        validation_batch_size: frames of a validation batch.
        frames: training batches carry frames too (whole maps only).
        labels: batches carry heist's labels.
        play: how the agent plays.
        precision: in which the agent runs; use the same where an autoencoder of these activations is spliced in.
        seed: of training levels, action noise and order.
        cache_dir: folder of all caches.

    Attributes:
        device: where the agent plays and is read while no Trainer says so; the CPU unless set.

    Raises:
        ValueError: an argument that cannot be meant, named with the mend.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        agent: str,
        taps: list[str],
        source: Literal["cache", "stream"] = "cache",
        environment: EnvironmentSettings = _ENVIRONMENT,
        num_frames: int = 61_440,
        validation_frames: int = 50_000,
        positions_per_frame: int | None = MAX_POSITIONS,
        batch_size: int = 4_096,
        validation_batch_size: int = 512,
        frames: bool = False,
        labels: bool = False,
        play: PlaySettings = _PLAY,
        precision: Precision = DEFAULT_PRECISION,
        seed: int = 0,
        cache_dir: str = ".cache/activations",
    ) -> None:
        super().__init__()
        refuse_held_out(environment.start_level)
        if not taps:
            raise ValueError("taps is empty: name at least one, for example conv4a")
        if positions_per_frame is not None and not 1 <= positions_per_frame <= MAX_POSITIONS:
            raise ValueError(
                f"positions_per_frame {positions_per_frame} is out of range: choose 1 to {MAX_POSITIONS}, "
                "or null for whole maps"
            )
        sizes = {"num_frames": num_frames, "validation_frames": validation_frames}
        sizes |= {"batch_size": batch_size, "validation_batch_size": validation_batch_size}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1 is needed")
        if source not in ("cache", "stream"):
            raise ValueError(f"source {source!r} is unknown: choose cache or stream")
        self.agent_path, self.taps, self.source, self.environment = agent, list(taps), source, environment
        self.num_frames, self.validation_frames = num_frames, validation_frames
        self.batch_size, self.validation_batch_size = batch_size, validation_batch_size
        self.precision, self.play, self.seed, self.cache_dir = precision, play, seed, cache_dir
        self.positions_per_frame = positions_per_frame
        self._training_columns = {"positions_per_frame": positions_per_frame, "frames": frames}
        self._labels = labels
        self._position = Position()

    @cached_property
    def agent(self) -> TappedNetwork:
        """The frozen agent or decision transformer, loaded when first asked for."""
        try:
            return load_network(self.agent_path).requires_grad_(False)
        except ValueError as error:
            raise ValueError(f"data.init_args.agent: {error}") from error

    @property
    def activation_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape that each recorded tap yields for one frame: (C, H, W) or (C,)."""
        self.agent.check_taps(self.taps)
        return {tap: self.agent.taps[tap] for tap in self.taps}

    def statistics(self, tap: str) -> Statistics:
        """Per-channel mean and one scale of a tap over the cached training data, or over the stream's first block.

        Raises:
            ValueError: a tap that is not recorded.
        """
        if tap not in self.taps:
            raise ValueError(f"tap {tap!r} is not recorded: add it to data.init_args.taps ({', '.join(self.taps)})")
        return statistics(self._cached_rows if self.source == "cache" else [self._first_block], tap)

    def prepare_data(self) -> None:
        """Check that what learns fits, what is on disk and what would have to be, then record the training cache."""
        check_learner(self)
        self._check_ranks()
        caches = [self._validation_cache, *([self._training_cache] if self.source == "cache" else [])]
        for cache in caches:
            cache.check()
        refuse_if_too_large(caches)
        if self.source == "cache":
            self._training_cache.build()

    def setup(self, stage: str) -> None:
        """Check on every rank what `prepare_data` checked on the first."""
        self._check_ranks()

    def _check_ranks(self) -> None:
        world = self._ranks()["world"]
        if len(ValidationLoader(self._validation_cache, self.validation_batch_size)) < world:
            raise ValueError(
                f"{self.validation_frames} validation frames in batches of {self.validation_batch_size} leave some of "
                f"{world} processes without any: raise validation_frames or lower validation_batch_size"
            )

    def train_dataloader(self) -> CacheLoader | StreamLoader:
        """Whole batches of training rows."""
        if self.source == "cache":
            return CacheLoader(
                self._cached_rows, self.batch_size, seed=self.seed, position=self._position, **self._ranks()
            ).limited(self.trainer)
        return StreamLoader(
            self._training_recorder,
            self._first_block,
            self.num_frames,
            self.batch_size,
            seed=self.seed,
            position=self._position,
            **self._ranks(),
        ).limited(self.trainer)

    def val_dataloader(self) -> ValidationLoader:
        """Whole maps with frames from validation levels; every frame once. Iterate as often as needed."""
        return ValidationLoader(self._validation_cache, self.validation_batch_size, **self._ranks())

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in the data."""
        return vars(self._position) | self._drawn_from()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where training stood; where an epoch is no longer of the same batches it begins again."""
        # Checkpoints of before tell less of this
        changed = [name for name, value in self._drawn_from().items() if state_dict.get(name, value) != value]
        if changed:
            rank_zero_info(f"{' and '.join(changed)} changed since the checkpoint: this epoch's data begin again")
        self._position.epoch, self._position.block = state_dict["epoch"], state_dict["block"]
        self._position.batch = 0 if changed else state_dict["batch"]

    def _drawn_from(self) -> dict[str, Any]:
        """Everything that an epoch's batches depend on, as primitives."""
        return {
            "num_frames": self.num_frames,
            "batch_size": self.batch_size,
            "world_size": self._ranks()["world"],
            "source": self.source,
            "recording": self._training_cache.folder.name,  # everything that decides the rows
        }

    def teardown(self, stage: str) -> None:
        """Free the environments."""
        for name in ("_training_recorder", "_validation_recorder"):
            if name in vars(self):  # made when first used
                vars(self)[name].close()

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}

    def _recorder(self, environment: EnvironmentSettings, seed: int, inside: bool, **columns: Any) -> Recorder:
        return Recorder(
            self.agent,
            environment,
            self.taps,
            labels=self._labels,
            inside=inside,
            precision=self.precision,
            play=self.play,
            seed=seed,
            device=self.device if self.trainer is None else self.trainer.strategy.root_device,
            **columns,
        )

    @cached_property
    def _training_recorder(self) -> Recorder:
        return self._recorder(self.environment, self.seed, inside=False, **self._training_columns)

    @cached_property
    def _validation_recorder(self) -> Recorder:
        held_out = dataclasses.replace(
            self.environment, start_level=VALIDATION_LEVELS.start, num_levels=len(VALIDATION_LEVELS)
        )
        return self._recorder(held_out, 0, inside=True, positions_per_frame=None, frames=True)

    @cached_property
    def _training_cache(self) -> ActivationCache:
        return ActivationCache(self.cache_dir, "training", self._training_recorder, self.num_frames)

    @cached_property
    def _validation_cache(self) -> ActivationCache:
        return ActivationCache(self.cache_dir, "validation", self._validation_recorder, self.validation_frames)

    @cached_property
    def _cached_rows(self) -> list[Rows]:
        return self._training_cache.open()

    @cached_property
    def _first_block(self) -> Rows:
        return self._training_recorder.block(0)
