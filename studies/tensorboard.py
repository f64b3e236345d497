"""A study's report as TensorBoard events, so that `tensorboard --logdir runs` shows studies beside trainings."""

import math
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from studies.report import Report


def write_events(report: Report, folder: Path) -> None:
    """Write a report's finite numbers, figures and films into events in `folder`, at step 0; parts into theirs."""
    for name, part in report.parts.items():
        write_events(part, folder / name)
    with SummaryWriter(folder) as writer:
        for name, value in report.summary.items():
            if math.isfinite(value):
                writer.add_scalar(name, value, 0)
        for name, figure in report.figures.items():
            if isinstance(figure, Tensor):
                writer.add_image(f"figures/{name}", figure.numpy(), 0, dataformats="HWC")
            else:
                writer.add_figure(f"figures/{name}", figure, 0, close=False)
        for name, film in report.films.items():
            assert writer.file_writer is not None
            writer.file_writer.add_summary(film.summary(f"films/{name}"), 0)
