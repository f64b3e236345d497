"""Writes what a validation found of each latent and channel of an autoencoder as tables and figures."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from callbacks.trainer_access import misplaced
from interpretability.pictures import save_figure
from interpretability.sae_figures import draw_channels, draw_latents
from networks.files import write_atomically


class SAETables(Callback):
    """After each validation writes the `latent_columns` and `channel_columns` of a `lightning_modules.ConvSAE`.

    In the run's folder: `tables/latents.csv`, `tables/channels.csv`, and `figures/latents.png`, `figures/channels.png`,
    which TensorBoard shows as `sae/latents` and `sae/channels`. Files are replaced whole; on several processes rank 0
    writes, of the whole validation set. Columns of latents (`lightning_modules.sae_metrics.Firing`): `frequency`,
    `mean_active`, `spread`, `places`; and of their directions `direction_length`, `nearest_cosine`, `channel_cosine`;
    of channels: `explained_variance`. Where something is not defined the cell is empty.

    Raises:
        ValueError: a module without such columns.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look whether there is something to write."""
        if not hasattr(pl_module, "latent_columns"):
            raise misplaced(pl_module, "SAETables needs a module with an autoencoder", "has none")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and draw."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._write(folder, trainer, pl_module)

    def _write(self, folder: Path, trainer: Trainer, module: Any) -> None:
        latents, channels = _arrays(module.latent_columns), _arrays(module.channel_columns)
        _write_csv(folder / "tables/latents.csv", "latent", latents)
        _write_csv(folder / "tables/channels.csv", "channel", channels)
        when = f"{module.tap}, step {trainer.global_step}"
        figures = {
            "latents": draw_latents(latents, when),
            "channels": draw_channels(channels["explained_variance"], f"{when}: what each channel is left with"),
        }
        for name, figure in figures.items():
            save_figure(folder / "figures" / f"{name}.png", figure, dpi=120)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"sae/{name}", figure, trainer.global_step)


def _arrays(columns: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: column.detach().cpu().double().numpy() for name, column in columns.items()}


def _write_csv(path: Path, unit: str, columns: Mapping[str, np.ndarray]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([unit, *columns])
    for number, cells in enumerate(zip(*columns.values(), strict=True)):
        writer.writerow([number, *("" if np.isnan(cell) else f"{cell:.6g}" for cell in cells)])
    write_atomically(path, lambda aside: aside.write_bytes(text.getvalue().encode()))
