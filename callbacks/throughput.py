"""How fast training goes, measured without waiting for the device."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT


class Throughput(Callback):
    """Logs `throughput/frames_per_second` and `throughput/activations_per_second`, whichever the data have.

    Frames are those that the environments played where the data module counts them (`env_steps`), else those of the
    training batches; a batch of positions holds activations but no frames. An activation is what one tap yields at
    one position. Time in validation is left out, everything else counts: playing, loading, callbacks, compilation.

    With data that play, a value is over one epoch, because playing and learning alternate within it.
    Counting reads shapes only: no batch is waited for.

    Args:
        every_n_batches: batches that one value is the mean of.
    """

    def __init__(self, every_n_batches: int = 50) -> None:
        if every_n_batches < 1:
            raise ValueError(f"every_n_batches is {every_n_batches}: at least 1 is needed")
        self.every_n_batches = every_n_batches
        self._logged = False
        self._clear(0)
        self._paused_at = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clear(_env_steps(trainer) or 0)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._since += time.perf_counter() - self._paused_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch, and log at the end of a window."""
        frames, activations = count(batch)
        self._frames += frames * trainer.world_size
        self._activations += activations * trainer.world_size
        self._batches += 1
        if self._batches >= self.every_n_batches and _env_steps(trainer) is None:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was played in this epoch, or an epoch shorter than a window."""
        if _env_steps(trainer) is not None or not self._logged:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        seconds = time.perf_counter() - self._since
        played = _env_steps(trainer)
        counts = {
            "frames": self._frames if played is None else played - self._played,
            "activations": self._activations,
        }
        metrics = {f"throughput/{name}_per_second": number / seconds for name, number in counts.items() if number}
        module.log_dict(metrics, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step if played is None else played)
        self._logged = True
        self._clear(played or 0)

    def _clear(self, played: int) -> None:
        self._since = time.perf_counter()
        self._played = played
        self._frames = self._activations = self._batches = 0


def count(batch: Any) -> tuple[int, int]:
    """Frames and activations of a batch that has the fields `frames` [B ...] or `activations` {tap: [B C ...]}."""
    taps = (getattr(batch, "activations", None) or {}).values()
    frames = getattr(batch, "frames", None)
    rows = [len(frames)] if frames is not None else [len(values) for values in taps if values.ndim > 2]
    return max(rows, default=0), sum(values.numel() // values.shape[1] for values in taps)


def _env_steps(trainer: Trainer) -> int | None:
    return getattr(getattr(trainer, "datamodule", None), "env_steps", None)
