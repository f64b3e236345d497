"""Writes the agent being trained as safetensors, ready for `load_agent`."""

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from callbacks.trainer_access import misplaced
from networks import save_weights


class AgentExport(Callback):
    """Saves `module.agent` to `agent.safetensors` in the run's folder, with how it was trained in the metadata.

    Args:
        every_n_epochs: how often; the file is replaced whole. At the end of training it is always written.
        keep_from: also keep the agent as `checkpoints/agent_FRAMES.safetensors` at the ends of the epochs in which the
            environment frames reached this number, twice, four times as many and so on: how what an agent knows
            comes about is best seen on such a ladder. Null keeps none.

    Raises:
        ValueError: numbers below 1; before training, a module that trains no agent.
    """

    def __init__(self, every_n_epochs: int = 10, keep_from: int | None = None) -> None:
        if every_n_epochs < 1 or (keep_from is not None and keep_from < 1):
            raise ValueError(f"every_n_epochs {every_n_epochs} and keep_from {keep_from} must be at least 1")
        self.every_n_epochs = every_n_epochs
        self.keep_from = keep_from
        self._rung = -1  # the last of the ladder that was kept

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look whether there is something to save."""
        if not hasattr(pl_module, "agent_metadata"):
            raise misplaced(pl_module, "AgentExport saves the agent being trained", "trains none")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save every so many epochs, and what the ladder asks for."""
        metadata = self._metadata(pl_module)
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer, pl_module, "agent.safetensors", metadata)
        frames = metadata["env_steps"]
        if self.keep_from is not None and frames >= self.keep_from:
            rung = int(math.log2(frames / self.keep_from))
            if rung > self._rung:
                self._rung = rung
                self._save(trainer, pl_module, f"checkpoints/agent_{frames:010d}.safetensors", metadata)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last weights."""
        self._save(trainer, pl_module, "agent.safetensors", self._metadata(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """How far up the ladder the run is."""
        return {"rung": self._rung}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._rung = state_dict["rung"]

    def _metadata(self, module: Any) -> dict[str, Any]:
        return module.agent_metadata() | {"command": shlex.join(["python", *sys.argv])}

    def _save(self, trainer: L.Trainer, module: Any, name: str, metadata: dict[str, Any]) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        finite = all(weight.isfinite().all() for weight in module.agent.parameters())  # or the module stops the run
        if trainer.is_global_zero and finite:
            save_weights(folder / name, module.agent, metadata)
