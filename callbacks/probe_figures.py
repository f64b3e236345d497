"""What probes read, as pictures in the run's folder and in TensorBoard."""

from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.trainer_access import misplaced
from interpretability import ProbeResult, draw_confusion, draw_heat_map, draw_written_by, written_by
from interpretability.pictures import save_figure, save_png
from networks import TappedAgent, TappedNetwork

WRITTEN = ("target", "next_direction", "pursued")


class ProbeFigures(Callback):
    """Draws, after a test, a heat map of target by tap for each form, and each target's confusion matrix at its best
    tap, from `module.results`; and what the layer before a tap writes to what is read there, at the best tap that has
    such a layer (behind a pool or a sum there are no weights): for each entity that the position form finds
    `inputs_ENTITY`, for each answer of the targets in `WRITTEN` `inputs_TARGET_ANSWER`, of the flat form or else the
    pooled one. `figures/*.png` in the run's folder, `probe/...` among TensorBoard's images.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there will be results.

        Raises:
            ValueError: a module without.
        """
        if not hasattr(pl_module, "results"):
            raise misplaced(pl_module, "ProbeFigures needs a module with results of probes", "has none")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "figures"
        for name, figure in self.figures(pl_module.results, data.data_name).items():  # type: ignore[arg-type]
            save_figure(folder / f"{name}.png", figure)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_figure(f"probe/{name}", figure, trainer.global_step)
        for name, picture in self.inputs(data.agent, pl_module).items():
            save_png(folder / f"{name}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(
                        f"probe/{name}", picture.numpy(), trainer.global_step, dataformats="HWC"
                    )

    def inputs(self, agent: TappedNetwork, module: Any) -> dict[str, UInt8[Tensor, "H W 3"]]:
        """What is written to what is read, by name; what cannot be drawn is said in the log."""
        if not isinstance(agent, TappedAgent):
            rank_zero_info(f"what writes to probes is not drawn: {agent.architecture} reads more than one frame")
            return {}
        pictures: dict[str, UInt8[Tensor, "H W 3"]] = {}
        results: list[ProbeResult] = module.results
        for form, target in dict.fromkeys((result.form, result.target) for result in results):
            known = [result for result in results if (result.form, result.target) == (form, target)]
            if form != "position":
                other = form == "pooled" and any(each.form == "flat" and each.target == target for each in results)
                if target not in WRITTEN or other:
                    continue
            for answer in ("here",) if form == "position" else known[0].classes:
                picture = _first_drawn(agent, module, sorted(known, key=lambda result: result.loss), answer)
                if picture is None:
                    taps = ", ".join(result.tap for result in known)
                    why = f"nothing is read, or no weights lead to it, at {taps}"
                    rank_zero_info(f"what writes to {target}, {answer}, is not drawn: {why}")
                else:
                    pictures[f"inputs_{target}" + f"_{answer}" * (form != "position")] = picture
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


def _first_drawn(
    agent: TappedAgent, module: Any, results: list[ProbeResult], answer: str
) -> UInt8[Tensor, "H W 3"] | None:
    """The picture of the first tap at which the answer is read along a direction to which weights lead."""
    for place, result in enumerate(results):
        try:
            direction = module.readout(result.tap, result.form).direction(result.target, answer)
            found = written_by(agent, result.tap, direction.vector)
        except ValueError:  # nothing is read, or before the tap there is a pool or a sum
            continue
        which = "the best tap" if place == 0 else "the best tap behind weights"
        return draw_written_by(found, f"{result.target}: {answer.replace('_', ' ')}, at {result.tap}, {which}")
    return None
