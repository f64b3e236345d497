"""Writes what probes have learnt as safetensors, ready for `load_readout`."""

import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.trainer_access import misplaced
from networks import LinearReadout, save_weights


class ProbeExport(Callback):
    """Saves the readouts of the agent's taps to `probes/FORM_TAP.safetensors` in the run's folder when training ends.

    The metadata say which agent they were fitted to, on which data, and the command.

    Raises:
        ValueError: before training, a module that fits no probes.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there will be something to save."""
        if not hasattr(pl_module, "readouts"):
            raise misplaced(pl_module, "ProbeExport saves fitted probes", "fits none")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save them."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        module: Any = pl_module
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "probes"
        metadata = {
            "agent_hash": data.agent.weights_hash,
            "data": data.data_name,
            "command": shlex.join(["python", *sys.argv]),
        }
        for key, readout in module.readouts.items():
            assert isinstance(readout, LinearReadout)
            if key.startswith("agent|") and readout.fitted.any():
                save_weights(folder / f"{readout.form}_{readout.tap}.safetensors", readout, metadata)
