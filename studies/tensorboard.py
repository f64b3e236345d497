"""A study's report as TensorBoard events, so that `tensorboard --logdir runs` shows studies beside trainings."""

import math
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from interpretability.films import Film
from studies.report import Report


def write_events(report: Report, folder: Path) -> None:
    """Write a report's finite numbers, figures and films into an event file in `folder`, at step 0."""
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
            writer.file_writer.add_summary(_video(f"films/{name}", film), 0)


def _video(tag: str, film: Film) -> Summary:
    """What `SummaryWriter.add_video` writes, a GIF in the place of an image, without the encoder that it asks for."""
    height, width, colours = film.frames.shape[1:]
    image = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=film.gif())
    return Summary(value=[Summary.Value(tag=tag, image=image)])
