"""Writes the agent being trained as safetensors, ready for `load_agent`."""

import shlex
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from networks import save_weights


class AgentExport(Callback):
    """Saves `module.agent` to `agent.safetensors` in the run's folder, with how it was trained in the metadata.

    Args:
        every_n_epochs: how often; the file is replaced whole. At the end of training it is always written.
        keep: also keep each export as `checkpoints/agent_STEPS.safetensors`, STEPS being environment frames.
    """

    def __init__(self, every_n_epochs: int = 10, keep: bool = False) -> None:
        self.every_n_epochs = every_n_epochs
        self.keep = keep

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save every so many epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last weights."""
        self._save(trainer, pl_module)

    def _save(self, trainer: L.Trainer, module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # of the first rank, which tells the others
        if not trainer.is_global_zero:
            return
        metadata = module.agent_metadata() | {"command": shlex.join(["python", *sys.argv])}
        save_weights(folder / "agent.safetensors", module.agent, metadata)
        if self.keep:
            name = f"agent_{metadata['env_steps']:010d}.safetensors"
            save_weights(folder / "checkpoints" / name, module.agent, metadata)
