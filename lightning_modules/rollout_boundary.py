"""Stopping and saving between two rollouts only, which is where all that training depends on fits together."""

import signal
import threading
from types import FrameType

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.ranks import gather


def check_boundaries(trainer: Trainer, steps: int) -> None:
    """Refuse what would save or end training while a rollout is being learnt from.

    Args:
        trainer: its ModelCheckpoints and `max_steps`.
        steps: of the optimiser in one rollout.

    Raises:
        ValueError: a ModelCheckpoint of another rhythm than epochs, a `max_steps` that ends inside a rollout.
    """
    whole = trainer.limit_train_batches == 1.0  # else somebody looks whether it runs at all
    if whole and trainer.max_steps > 0 and trainer.max_steps % steps:
        raise ValueError(
            f"max_steps is {trainer.max_steps} and a rollout is learnt from in {steps}: give a multiple, or max_epochs"
        )
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (not callback.every_n_epochs or callback.save_on_exception):
            raise ValueError(
                "a run is gone on with exactly only from between two rollouts: give ModelCheckpoint every_n_epochs, "
                "and neither every_n_train_steps, train_time_interval nor save_on_exception (SIGTERM saves anyway)"
            )


class WholeRollouts:
    """Lets nothing end training but between two rollouts (`max_time` and callbacks would, after any batch), and has the
    last rollout saved however it came to be the last.
    """

    def __init__(self) -> None:
        self._asked = False

    def put_off_stop(self, trainer: Trainer) -> None:
        """For after every batch: a stop that was asked for waits for the last batch of the rollout."""
        if trainer.should_stop and not trainer.is_last_batch:
            self._asked, trainer.should_stop = True, False
        elif self._asked and trainer.is_last_batch:
            self._asked, trainer.should_stop = False, True

    def save_last(self, trainer: Trainer) -> None:
        """For after every rollout: if training ends here, each ModelCheckpoint saves that would have passed it over."""
        epochs = trainer.current_epoch + 1
        stopped = trainer.should_stop and epochs >= (trainer.min_epochs or 0)
        if not (stopped or epochs == trainer.max_epochs or trainer.global_step == trainer.max_steps):
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and epochs % (callback.every_n_epochs or 1):
                metrics = callback._monitor_candidates(trainer)  # from here on as its own `on_exception` does
                if callback.save_last is not True:
                    callback._save_checkpoint(trainer, callback.format_checkpoint_name(metrics))
                callback._save_last_checkpoint(trainer, metrics)


class SigtermFlag:
    """Takes SIGTERM over from Lightning, which would stop, and on several ranks could hang, amid a rollout.

    The first `stop` that any rank comes to after a SIGTERM to any of them writes a checkpoint and ends training.
    """

    def __init__(self) -> None:
        self._received = False

    def listen(self, trainer: Trainer) -> None:
        """From here on; Lightning puts back the handler of before when training ends."""
        self._received = trainer.received_sigterm
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def stop(self, trainer: Trainer, device: torch.device) -> None:
        """End training if asked to; for all ranks to call between two rollouts.

        Raises:
            SIGTERMException: a rank has received SIGTERM. Each ModelCheckpoint saves on its way out.
        """
        if not gather(torch.tensor(float(self._received), device=device)).any():
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.save_on_exception = True
        raise SIGTERMException
