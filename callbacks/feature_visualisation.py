"""Pictures of what the most active units of a network want to see, and of what drives them in the game."""

import dataclasses
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.evolving_images import EvolvingImages
from callbacks.visualised import VisualisedSubject
from interpretability import (
    DatasetExamples,
    FeatureSheet,
    OptimisationSettings,
    draw_feature_sheet,
    game_colours,
)
from interpretability.episodes import evaluating
from interpretability.pictures import save_png
from networks import TappedAgent

_OPTIMISATION = OptimisationSettings()


class FeatureVisualisation(Callback):
    """Draws optimised images of the most active units beside the frames that drive them most: `features/TAP` in
    TensorBoard and `figures/features_TAP.png` in the run's folder, with the final weights, and while training if asked.

    Every so many steps a small grid of images of a few units is carried on by a few steps of ascent and shown as
    `features_evolving/TAP`: with TensorBoard's slider one sees them take shape. `features_evolving/time_share` is the
    share of the time since training began that these grids took.

    A module with an autoencoder (`sae` and `tap`; its agent is the data module's) shows latents, over validation
    frames; most active are those that contribute most to the reconstruction: mean activation x length of the latent's
    direction. What drives a network that sees more than one frame is no image: frames alone are shown then. A module
    with an agent alone (`agent`) shows a tap's channels, by mean activation, over its own play of validation levels;
    while training they are chosen on a batch's `frames`. Random generators, gradients, counters and train or eval mode
    are left as they are. On several processes rank 0 draws, from its own share of the frames.

    Args:
        num_units: units shown.
        num_examples: frames shown for each.
        num_frames: frames looked through.
        every_n_steps: steps between two evolving grids; null for none. A network that sees more than one frame has
            none either.
        evolving_units: units in them.
        evolving_steps: steps of ascent that each adds.
        every_n_validations: the whole sheet also after every so many validations in `fit`; null for the end only.
        tap: the tap to show; null for the autoencoder's own, or for the agent's last convolution.
        one_per_level: examples are of different levels.
        diversity: weight of an example's likeness to those before it, see `DatasetExamples`.
        optimisation: how images are made.

    Attributes:
        sheet: what was drawn last.

    Raises:
        ValueError: an argument below 1; before training, a module with neither autoencoder nor agent, or a tap that
            it does not have.
    """

    sheet: FeatureSheet | None = None

    def __init__(
        self,
        num_units: int = 16,
        num_examples: int = 6,
        num_frames: int = 20_000,
        every_n_steps: int | None = 1_000,
        evolving_units: int = 8,
        evolving_steps: int = 8,
        every_n_validations: int | None = None,
        tap: str | None = None,
        one_per_level: bool = True,
        diversity: float = 0.0,
        optimisation: OptimisationSettings = _OPTIMISATION,
    ) -> None:
        counts = {"num_units": num_units, "num_examples": num_examples, "num_frames": num_frames}
        counts |= {"evolving_units": evolving_units, "evolving_steps": evolving_steps}
        rhythms = {"every_n_steps": every_n_steps, "every_n_validations": every_n_validations}
        for name, count in (counts | rhythms).items():
            if count is not None and count < 1:
                raise ValueError(f"FeatureVisualisation: {name} is {count}: at least 1 is needed")
        if diversity < 0:
            raise ValueError(f"FeatureVisualisation: diversity is {diversity}: it must not be negative")
        self.num_units, self.num_examples, self.num_frames = num_units, num_examples, num_frames
        self.every_n_validations, self.tap, self.optimisation = every_n_validations, tap, optimisation
        self.every_n_steps = every_n_steps
        self.one_per_level, self.diversity = one_per_level, diversity
        self._evolving = EvolvingImages(evolving_units, dataclasses.replace(optimisation, steps=evolving_steps))
        self._validations = 0
        self._drawn_at: int | None = None
        self._grown_at = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there is something to show, and have the game's colours ready, which are fitted once."""
        subject = VisualisedSubject(trainer, pl_module, self.tap)
        if self.every_n_steps is not None and trainer.is_global_zero and isinstance(subject.agent, TappedAgent):
            with _left_alone(subject):
                game_colours(subject.environment, subject.cache_dir)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the evolving grids; the first is due a rhythm from here."""
        self._grown_at = trainer.global_step
        self._evolving.start_clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Carry the grid on every so many steps."""
        step = trainer.global_step
        due = self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._grown_at
        if not due or not trainer.is_global_zero:
            return
        self._grown_at = step
        subject = VisualisedSubject(trainer, pl_module, self.tap)
        if not isinstance(subject.agent, TappedAgent):
            return
        with _left_alone(subject):
            picture = self._evolving.draw(subject, batch, step)
        _show(trainer, f"features_evolving/{subject.tap}", picture)
        share = {"features_evolving/time_share": self._evolving.time_share}
        pl_module.log_dict(share, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(share, step=step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw after every so many validations of a fit."""
        if self.every_n_validations is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw with the final weights, unless a validation has just done so."""
        if self._drawn_at != trainer.global_step:
            self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were, and the evolving images, so that a resumed run goes on with both."""
        return {"validations": self._validations, "evolving": self._evolving.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of validations and the images."""
        self._validations = state_dict["validations"]
        if "evolving" in state_dict:  # checkpoints of older versions have none
            self._evolving.load_state_dict(state_dict["evolving"])

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        self._drawn_at = trainer.global_step
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        if trainer.is_global_zero:
            self._draw_into(folder / "figures", trainer, module)

    def _draw_into(self, folder: Path, trainer: Trainer, module: LightningModule) -> None:
        subject = VisualisedSubject(trainer, module, self.tap)
        with _left_alone(subject):
            self.sheet = self._sheet(subject, str(trainer.global_step))
        _show(trainer, f"features/{subject.tap}", self.sheet.picture)
        save_png(folder / f"features_{subject.tap}.png", self.sheet.picture)

    def _sheet(self, subject: VisualisedSubject, step: str) -> FeatureSheet:
        examples = DatasetExamples(self.num_examples, self.one_per_level, diversity=self.diversity)
        with torch.inference_mode(False), torch.no_grad():
            for frames, acts, levels in subject.batches(self.num_frames):
                examples.update(frames, acts if subject.sae is None else subject.sae.encode(acts), levels)
            share = examples.mean if subject.sae is None else examples.mean * subject.sae.decoder_norms().cpu()
        units = share.topk(min(self.num_units, len(share))).indices.tolist()
        kind = "channels" if subject.sae is None else f"of {len(share)} latents"
        return draw_feature_sheet(
            subject.agent,
            subject.tap,
            units,
            examples,
            game_colours(subject.environment, subject.cache_dir),
            sae=subject.sae,
            settings=self.optimisation,
            precision=subject.precision,
            title=f"{subject.tap}: the {len(units)} most active {kind}, step {step}",
        )


def _show(trainer: Trainer, name: str, picture: UInt8[Tensor, "H W 3"]) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture.numpy(), trainer.global_step, dataformats="HWC")


@contextmanager
def _left_alone(subject: VisualisedSubject) -> Iterator[None]:
    """Look in eval mode, and put every module's mode and torch's, numpy's and Python's generators back."""
    modules = [subject.agent, *([subject.sae] if subject.sae is not None else [])]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(), evaluating(*modules):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
