"""What pictures are made of while a network trains: its agent, tap and autoencoder, and where its frames come from."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from lightning.pytorch import Trainer
from torch import Tensor

from callbacks.trainer_access import misplaced, trainer_precision
from environments import VALIDATION_LEVELS, EnvironmentSettings
from interpretability import PlayedStep, play_episodes
from networks import Precision, SAEBase, TappedAgent, TappedNetwork, autocast

Batch = tuple[UInt8[Tensor, "B 64 64 3"], Tensor, Int[Tensor, " B"]]  # frames, activations of the tap, levels

_LEVELS_AT_ONCE = 64
_FRAMES_AT_ONCE = 256
_LONGEST_EPISODE = 200  # a stuck agent shows the same frame for ever


class VisualisedSubject:
    """What is looked at, and where its frames come from.

    Args:
        trainer: with the data module.
        module: with an autoencoder (`sae` and `tap`; its agent is the data module's), or an agent alone (`agent`).
        tap: None for the autoencoder's own, or for the agent's last convolution.

    Attributes:
        agent, tap, sae, precision: what is looked at.

    Raises:
        ValueError: a module with neither, or a tap that it does not have.
    """

    def __init__(self, trainer: Trainer, module: Any, tap: str | None) -> None:
        self._data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._device = module.device
        self.sae: SAEBase | None = getattr(module, "sae", None)
        agent = getattr(module if self.sae is None else self._data, "agent", None)
        if not isinstance(agent, TappedNetwork if self.sae is not None else TappedAgent):
            raise misplaced(module, "FeatureVisualisation needs an autoencoder or an agent", "has neither")
        # a shallow copy shares everything but the compiled call: no recompilation for other batch sizes and taps
        self.agent: TappedNetwork = copy.copy(agent.to(self._device))
        if self.sae is not None:
            if tap not in (None, module.tap):
                raise ValueError(
                    f"FeatureVisualisation: tap is {tap!r}, the autoencoder's is {module.tap!r}: leave it null"
                )
            self.tap: str = module.tap
            self.precision: Precision = self._data.precision
        else:
            maps = [name for name, shape in agent.taps.items() if len(shape) == 3 and f"{name}.pre" in agent.taps]
            self.tap = tap or (maps or list(agent.taps))[-1]
            self.precision = trainer_precision(trainer)
        self.agent.check_taps([self.tap])

    @property
    def environment(self) -> EnvironmentSettings:
        """What is played."""
        settings: EnvironmentSettings = self._data.environment
        return settings

    @property
    def cache_dir(self) -> str | None:
        """Where the data module keeps its caches; None where it has none."""
        return getattr(self._data, "cache_dir", None)

    def batches(self, num_frames: int) -> Iterator[Batch]:
        """The first so many frames."""
        left = num_frames
        for frames, acts, levels in self._validation() if self.sae is not None else self._play():
            yield frames[:left], acts[:left], levels[:left]
            left -= len(frames)
            if left <= 0:
                return

    def _validation(self) -> Iterator[Batch]:
        for batch in self._data.val_dataloader():
            if batch.frames is None:
                raise ValueError("FeatureVisualisation: the validation batches carry no frames to show")
            yield batch.frames, batch.activations[self.tap].to(self._device), batch.levels

    def _play(self) -> Iterator[Batch]:
        for start in range(0, len(VALIDATION_LEVELS), _LEVELS_AT_ONCE):
            seen: list[PlayedStep] = []
            play_episodes(
                self.agent,
                VALIDATION_LEVELS[start : start + _LEVELS_AT_ONCE],
                settings=self.environment,
                num_environments=_LEVELS_AT_ONCE,
                max_steps=_LONGEST_EPISODE,
                precision=self.precision,
                observer=seen.append,
            )
            levels = torch.from_numpy(np.concatenate([step.levels for step in seen]))
            played = torch.from_numpy(np.concatenate([step.frames for step in seen]))
            for rows in torch.arange(len(levels)).split(_FRAMES_AT_ONCE):
                frames = played[rows]
                with autocast(self.precision, self._device):
                    recorded = self.agent.forward(frames.to(self._device), record=(self.tap,), outputs=False)
                yield frames, recorded.activations[self.tap], levels[rows]
