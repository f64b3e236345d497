"""How many latents are dead, and how often the others fire."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.trainer_access import misplaced


class DeadNeurons(Callback):
    """Reads the firing counter beside the autoencoder (`module.firing`, a `networks.FiringCounter`); changes nothing.

    While training, `sae/dead_fraction` is the share of latents without a firing in the counter's last `window` inputs
    (`model.init_args.dead_window`; an input is one position), from the moment that so many were seen. The counter is
    part of every checkpoint, so a resumed run goes on with what the interrupted one had seen. A histogram of log10 of
    the latents' firing frequency over the last one to two windows goes to TensorBoard; latents without a firing stand
    one decade below the lowest frequency that could have been seen.

    Args:
        every_n_steps: steps between two looks.

    Raises:
        ValueError: every_n_steps below 1, or a module without a counter.
    """

    def __init__(self, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"DeadNeurons: every_n_steps is {every_n_steps}: at least 1 is needed")
        self.every_n_steps = every_n_steps
        self._looked_at = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there is a counter."""
        if not hasattr(pl_module, "firing"):
            raise misplaced(pl_module, "DeadNeurons needs a module that counts firings", "does not")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the steps to come."""
        self._looked_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look every so many steps, once each though a step may have several batches."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._looked_at:
            self._looked_at = step
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last histogram; the dead are then counted by validation, with the final weights."""
        self._show_histogram(trainer, pl_module.firing)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        firing: Any = pl_module.firing
        if firing.seen >= firing.window:
            pl_module.log("sae/dead_fraction", firing.dead().float().mean())
        self._show_histogram(trainer, firing)

    @rank_zero_only
    def _show_histogram(self, trainer: Trainer, firing: Any) -> None:
        inputs = firing.inputs + firing.last_inputs
        if inputs == 0:
            return
        decades = firing.frequency().clamp_min(0.1 / float(inputs)).log10()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                name = "sae/log10_firing_frequency"
                logger.experiment.add_histogram(name, decades.cpu(), trainer.global_step, bins="auto")
