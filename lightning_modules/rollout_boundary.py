"""Stopping and saving between two rollouts only, which is where all that training depends on fits together."""

import signal
import threading
from types import FrameType

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.ranks import gather


def check_checkpoints(trainer: Trainer) -> None:
    """Raise ValueError for a ModelCheckpoint that would save while a rollout is being learnt from."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and (not callback.every_n_epochs or callback.save_on_exception):
            raise ValueError(
                "a run is gone on with exactly only from between two rollouts: give ModelCheckpoint every_n_epochs, "
                "and neither every_n_train_steps, train_time_interval nor save_on_exception (SIGTERM saves anyway)"
            )


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
