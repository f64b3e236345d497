"""What several callbacks ask of a trainer."""

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer

from networks import Precision


def trainer_precision(trainer: Trainer) -> Precision:
    """The precision of passes that match those of training."""
    return "bf16" if str(trainer.precision).startswith("bf16") else "fp32"


def log_now(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers of one moment at a given step, in hooks where `self.log` is not allowed or would average."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)
