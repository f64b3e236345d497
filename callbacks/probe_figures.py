"""What probes read, as pictures in the run's folder and in TensorBoard."""

from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from interpretability import ProbeResult, draw_confusion, draw_heat_map, draw_written_by, written_by
from interpretability.pictures import save_png
from networks import TappedAgent


class ProbeFigures(Callback):
    """Draws, after a test, a heat map of target by tap for each form, and each target's confusion matrix at its best
    tap, from `module.results`; and for each entity that the position form finds what the layer before its best tap
    writes to it. `figures/*.png` in the run's folder, `probe/...` among TensorBoard's images.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there will be results.

        Raises:
            ValueError: a module without.
        """
        if not hasattr(pl_module, "results"):
            raise ValueError(
                f"ProbeFigures needs a module with results of probes, and {type(pl_module).__name__} has none: "
                "take it out of trainer.callbacks"
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "figures"
        for name, figure in self.figures(pl_module.results, data.data_name).items():  # type: ignore[arg-type]
            path = folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"probe/{name}", figure, trainer.global_step)
        for name, picture in self._inputs(data.agent, pl_module).items():
            save_png(folder / f"{name}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(
                        f"probe/{name}", picture.numpy(), trainer.global_step, dataformats="HWC"
                    )

    def _inputs(self, agent: TappedAgent, module: Any) -> dict[str, UInt8[Tensor, "H W 3"]]:
        pictures = {}
        for result in module.results:
            if result.best and result.form == "position":
                direction = module.readout(result.tap, "position").direction(result.target, "here")
                try:
                    found = written_by(agent, result.tap, direction.vector)
                except ValueError:  # behind a pool or a sum there are no weights to show
                    continue
                title = f"{result.target} is here, at {result.tap}"
                pictures[f"inputs_{result.target}"] = draw_written_by(found, title)
        return pictures

    def figures(self, results: list[ProbeResult], data: str) -> dict[str, Figure]:
        """Figures by name."""
        figures = {}
        for form in dict.fromkeys(result.form for result in results):
            chosen = [result for result in results if result.form == form]
            figures[f"heat_map_{data}_{form}"] = draw_heat_map(chosen, f"{data} data, form: {form}")
            for result in chosen:
                if result.best and result.confusion is not None:
                    title = f"{result.target} at {result.tap}, {data} data, form: {form}"
                    figures[f"confusion_{data}_{form}_{result.target}"] = draw_confusion(result, title)
        return figures
