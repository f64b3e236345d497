"""Writes the autoencoder being trained as safetensors, ready for `load_sae`."""

import math
import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.trainer_access import misplaced
from networks import save_weights


class SAEExport(Callback):
    """Saves `module.sae` to `sae.safetensors` in the run's folder when training ends, and again after each validation.

    The metadata say what `module.sae_metadata()` does, the command, and the metrics known by then (`sae/...`,
    `splice/...`); so list it last. The file is replaced whole.

    Raises:
        ValueError: before training, a module without an autoencoder of its own.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there is something to save."""
        if not hasattr(pl_module, "sae"):
            raise misplaced(
                pl_module, "SAEExport needs a module with one autoencoder", "is none", "use SAESweepReport for a sweep"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last weights."""
        self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save with the metrics that were just measured."""
        if not trainer.sanity_checking:
            self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        if not trainer.is_global_zero:
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("sae/", "splice/")) and math.isfinite(value):
                self._metrics[name] = float(value)  # a later look at the same final weights adds to an earlier one
        metadata = module.sae_metadata() | {"metrics": self._metrics, "command": shlex.join(["python", *sys.argv])}
        save_weights(folder / "sae.safetensors", module.sae, metadata)
