"""What a sweep leaves: every autoencoder as a file, a table, and the frontier."""

import csv
import io
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.trainer_access import misplaced
from interpretability.frontier import FrontierPoint, draw_frontier
from interpretability.pictures import save_png
from interpretability.seed_stability import seed_cosines
from networks import save_weights
from networks.files import write_atomically

_FILE = "sweep.csv"


class SAESweepReport(Callback):
    """Saves every member of a `SAESweep` as `saes/MEMBER.safetensors` in the run's folder, ready for `load_sae`, when
    training ends and again after each validation, then with its metrics. A validation also writes `sweep.csv`, one row
    a member, and the frontier of L0 and explained variance: `frontier` in TensorBoard and `figures/frontier.png`.

    Members that differ in their seed alone have a column `seed_cosine`: the mean over latents, of those that fired on
    at least 1 in 1 000 of the last training inputs, of the highest cosine with a latent of another seed
    (`seed_cosines`), averaged over the other seeds.

    Raises:
        ValueError: before training, a module that is no sweep.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there are members."""
        if not hasattr(pl_module, "saes"):
            raise misplaced(pl_module, "SAESweepReport needs a sweep", "is none", "use SAEExport")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last weights."""
        self._save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save with the metrics that were just measured, and draw them."""
        if trainer.sanity_checking:
            return
        folder = self._save(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        stable = _seed_cosines(pl_module)
        rows = [
            {"member": name, **_settings(pl_module, name), **_metrics(trainer, name), **stable[name]}
            for name in _names(pl_module)
        ]
        _write_table(folder / _FILE, rows)
        points = [
            FrontierPoint(row["member"], row["kind"], *(row.get(key, math.nan) for key in FrontierPoint._fields[2:]))
            for row in rows
        ]
        raw = trainer.callback_metrics.get("sae/l0_raw")
        title = f"{pl_module.tap}: {len(rows)} autoencoders, step {trainer.global_step}"
        picture = draw_frontier(points, title, None if raw is None else float(raw))
        save_png(folder / "figures" / "frontier.png", picture)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("frontier", picture.numpy(), trainer.global_step, dataformats="HWC")

    def _save(self, trainer: Trainer, module: Any) -> Path:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        if trainer.is_global_zero:
            command = shlex.join(["python", *sys.argv])
            for name, sae in module.saes.items():
                metrics = {f"sae/{key}": value for key, value in _metrics(trainer, name).items()}
                metadata = module.sae_metadata(name) | {"metrics": metrics, "command": command}
                save_weights(folder / "saes" / f"{name}.safetensors", sae, metadata)
        return folder


def _names(module: Any) -> list[str]:
    return list(module.saes)


def _settings(module: Any, name: str) -> dict[str, Any]:
    metadata = module.sae_metadata(name)
    return {"kind": metadata["kind"], **module.saes[name].config(), **metadata["training"]}


def _seed_cosines(module: Any) -> dict[str, dict[str, float]]:
    """`seed_cosine` of each member that has others of its settings."""
    directions = {name: sae.directions().detach().flatten(1) for name, sae in module.saes.items()}
    frequencies = module.firing.frequency().split([len(found) for found in directions.values()])
    settings = {name: {**_settings(module, name), "seed": None} for name in directions}
    found = seed_cosines(directions, dict(zip(directions, frequencies, strict=True)), settings)
    return {name: {"seed_cosine": found[name]} if name in found else {} for name in directions}


def _metrics(trainer: Trainer, name: str) -> dict[str, float]:
    """The finite ones of one member, without its name."""
    start = f"sae/{name}/"
    own = {
        key.removeprefix(start): float(value)
        for key, value in trainer.callback_metrics.items()
        if key.startswith(start)
    }
    return {key: value for key, value in own.items() if math.isfinite(value)}


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a member, replaced whole; a column that a member does not have is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda partial: partial.write_text(text.getvalue()))
