"""The last word of a run: its final metrics as `summary.json` and as a table, with where to look next."""

import json
import math
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from networks.files import write_atomically


class RunSummary(Callback):
    """Collects what was logged, in `fit` and in a `validate` after it, until `finish` writes it down.

    train.py adds one to every run. The presence of `summary.json` is what marks a run as finished, so it is
    written last, by `finish`, and not by a hook that also sees interrupted runs.

    Attributes:
        metrics: metric name -> last value; a validation after the fit replaces the values of the same name.
        started: whether a training step has been about to be taken, that is, whether work may be lost.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.started = False
        self._headline = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that training has begun."""
        self.started = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what the module wants shown of many metrics."""
        self._headline = getattr(pl_module, "headline_metrics", "")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last values of everything that was logged.

        A run that was killed in its last evaluation goes on from a checkpoint of its last step. Lightning then has no
        step to take and leaves out `on_train_end`, where that evaluation is; so the hook is called here, but for
        progress bars, which were never begun.
        """
        if not self.started:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if not isinstance(callback, ProgressBar):
                    callback.on_train_end(trainer, pl_module)
            pl_module.on_train_end()
        self._collect(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the values of a validation of its own, with the final weights; those inside `fit` are not final."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._collect(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the values of a test."""
        self._collect(trainer)

    @rank_zero_only
    def finish(self, folder: Path) -> None:
        """Write `folder/summary.json` (not a number becomes null) and print the table on stdout.

        A module that logs very many metrics names those to print by a part of their names, `headline_metrics`.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in sorted(self.metrics.items())}
        text = json.dumps(finite, indent=2) + "\n"
        write_atomically(folder / "summary.json", lambda partial: partial.write_text(text))
        console = Console()
        shown = {name: value for name, value in self.metrics.items() if self._headline in name}
        console.print(summary_table(shown or self.metrics, title=str(folder)))
        for line in where_to_look(folder):
            console.print(line, soft_wrap=True, highlight=False)

    def _collect(self, trainer: Trainer) -> None:
        self.metrics.update({name: float(value) for name, value in trainer.callback_metrics.items()})


def summary_table(metrics: dict[str, float], title: str) -> Table:
    """One row a metric; `_low` and `_high` of a metric, its 95 % interval, share the row."""
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for name, value in sorted(metrics.items()):
        base = name.removesuffix("_low").removesuffix("_high")
        if base != name and base in metrics:
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        interval = f"{low:.4g} to {high:.4g}" if low is not None and high is not None else ""
        table.add_row(name, f"{value:.4g}", interval)
    return table


def where_to_look(folder: Path) -> list[str]:
    """Sentences that name the pictures, the curves and the weights which a run has left."""
    figures = sorted(path for path in (folder / "figures").glob("**/*") if path.is_file())
    lines = [f"pictures  {folder / 'figures'} ({len(figures)} files)"] if figures else []
    lines.append(f"curves    tensorboard --logdir {folder}")
    lines += [f"weights   {path}" for path in sorted(folder.glob("*.safetensors"))]
    if members := len(list(folder.glob("saes/*.safetensors"))):
        lines += [f"weights   {folder / 'saes'} ({members} files)", f"table     {folder / 'sweep.csv'}"]
    checkpoints = sorted(folder.glob("checkpoints/**/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return [*lines, *(f"state     {path}" for path in checkpoints[-1:])]
