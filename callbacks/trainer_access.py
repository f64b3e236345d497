"""What several callbacks ask of a trainer and of what it trains."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

from networks import Precision


def misplaced(module: object, need: str, lack: str, instead: str = "") -> ValueError:
    """What a callback raises that has nothing to do with the module being trained.

    Args:
        need: the callback's name and what it needs or does.
        lack: how the module falls short of it.
        instead: what else to do than to take the callback out.
    """
    mend = f"take it out of trainer.callbacks{f', or {instead}' if instead else ''}"
    return ValueError(f"{need}, and {type(module).__name__} {lack}: {mend}")


def trainer_precision(trainer: Trainer) -> Precision:
    """The precision of passes that match those of training."""
    return "bf16" if str(trainer.precision).startswith("bf16") else "fp32"


def log_now(trainer: Trainer, metrics: Mapping[str, float] | None, step: int) -> None:
    """Log numbers of one moment at a given step, in hooks where `self.log` is not allowed or would average.

    Every rank calls this and learns the numbers of the first, so that all decide alike what hangs on them (which
    checkpoint is the best, when to stop); the others give None.
    """
    strategy: Any = trainer.strategy
    metrics = strategy.broadcast(metrics)
    assert metrics is not None
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=step)
