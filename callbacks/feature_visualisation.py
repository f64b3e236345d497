"""Pictures of what the most active units of a network want to see, and of what drives them in the game."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from callbacks.trainer_access import trainer_precision
from environments import VALIDATION_LEVELS, EnvironmentSettings
from interpretability import (
    ColourMoments,
    DatasetExamples,
    FeatureSheet,
    OptimisationSettings,
    PlayedStep,
    draw_feature_sheet,
    play_episodes,
)
from interpretability.episodes import evaluating
from interpretability.pictures import save_png
from networks import Precision, SAEBase, TappedAgent, TappedNetwork, autocast

Batch = tuple[UInt8[Tensor, "B 64 64 3"], Tensor, Int[Tensor, " B"]]  # frames, activations of the tap, levels

_OPTIMISATION = OptimisationSettings()
_COLOUR_STRIDE = 16  # of the frames that colours are fitted on: neighbours in a stream look alike
_LEVELS_AT_ONCE = 64
_FRAMES_AT_ONCE = 256
_LONGEST_EPISODE = 200  # a stuck agent shows the same frame for ever


class FeatureVisualisation(Callback):
    """Draws optimised images of the most active units beside the frames that drive them most: `features/TAP` in
    TensorBoard and `figures/features_TAP.png` in the run's folder, with the final weights, and while training if asked.

    A module with an autoencoder (`sae` and `tap`; its agent is the data module's) shows latents, over validation
    frames; most active are those that contribute most to the reconstruction: mean activation x length of the latent's
    direction. What drives a network that sees more than one frame is no image: frames alone are shown then. A module
    with an agent alone (`agent`) shows a tap's channels, by mean activation, over its own play of
    validation levels. Random generators, gradients, counters and train or eval mode are left as they are. On several
    processes rank 0 draws, from its own share of the frames.

    Args:
        num_units: units shown.
        num_examples: frames shown for each, at most one a level.
        num_frames: frames looked through.
        every_n_validations: also after every so many validations in `fit`; null for the end only.
        tap: the tap to show; null for the autoencoder's own, or for the agent's last convolution.
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
        every_n_validations: int | None = None,
        tap: str | None = None,
        optimisation: OptimisationSettings = _OPTIMISATION,
    ) -> None:
        counts = {"num_units": num_units, "num_examples": num_examples, "num_frames": num_frames}
        if every_n_validations is not None:
            counts["every_n_validations"] = every_n_validations
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"FeatureVisualisation: {name} is {count}: at least 1 is needed")
        self.num_units, self.num_examples, self.num_frames = num_units, num_examples, num_frames
        self.every_n_validations, self.tap, self.optimisation = every_n_validations, tap, optimisation
        self._validations = 0
        self._drawn_at: int | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there is something to show."""
        _Subject(trainer, pl_module, self.tap)

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
        """How many validations there were, so that a resumed run keeps the rhythm."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of validations."""
        self._validations = state_dict["validations"]

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        self._drawn_at = trainer.global_step
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        if trainer.is_global_zero:
            self._draw_into(folder / "figures", trainer, module)

    def _draw_into(self, folder: Path, trainer: Trainer, module: LightningModule) -> None:
        subject = _Subject(trainer, module, self.tap)
        modules = [subject.agent, *([subject.sae] if subject.sae is not None else [])]
        with _random_state_kept(), evaluating(*modules):
            self.sheet = self._sheet(subject, str(trainer.global_step))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                picture = self.sheet.picture.numpy()
                logger.experiment.add_image(f"features/{subject.tap}", picture, trainer.global_step, dataformats="HWC")
        save_png(folder / f"features_{subject.tap}.png", self.sheet.picture)

    def _sheet(self, subject: "_Subject", step: str) -> FeatureSheet:
        examples = DatasetExamples(self.num_examples)
        colours = ColourMoments(self.optimisation.parametrisation == "phase")
        with torch.inference_mode(False), torch.no_grad():
            for frames, acts, levels in subject.batches(self.num_frames):
                colours.update(frames[::_COLOUR_STRIDE])
                examples.update(frames, acts if subject.sae is None else subject.sae.encode(acts), levels)
            share = examples.mean if subject.sae is None else examples.mean * subject.sae.decoder_norms().cpu()
        units = share.topk(min(self.num_units, len(share))).indices.tolist()
        kind = "channels" if subject.sae is None else f"of {len(share)} latents"
        return draw_feature_sheet(
            subject.agent,
            subject.tap,
            units,
            examples,
            colours.statistics(),
            sae=subject.sae,
            settings=self.optimisation,
            precision=subject.precision,
            title=f"{subject.tap}: the {len(units)} most active {kind}, step {step}",
        )


class _Subject:
    """What is looked at, and where its frames come from."""

    def __init__(self, trainer: Trainer, module: Any, tap: str | None) -> None:
        self._data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._device = module.device
        self.sae: SAEBase | None = getattr(module, "sae", None)
        agent = getattr(module if self.sae is None else self._data, "agent", None)
        if not isinstance(agent, TappedNetwork if self.sae is not None else TappedAgent):
            raise ValueError(
                f"FeatureVisualisation needs an autoencoder or an agent, and {type(module).__name__} has neither: "
                "take it out of trainer.callbacks"
            )
        # a shallow copy shares everything but the compiled call: no recompilation for other batch sizes and taps
        self.agent: TappedNetwork = copy.copy(agent.to(self._device))
        if self.sae is not None:
            if tap not in (None, module.tap):
                raise ValueError(
                    f"FeatureVisualisation: tap is {tap!r}, the autoencoder's is {module.tap!r}: leave it null"
                )
            self.tap: str = module.tap
            self.precision: Precision = self._data.precision
        else:
            maps = [name for name, shape in agent.taps.items() if len(shape) == 3 and f"{name}.pre" in agent.taps]
            self.tap = tap or (maps or list(agent.taps))[-1]
            self.precision = trainer_precision(trainer)
        self.agent.check_taps([self.tap])

    def batches(self, num_frames: int) -> Iterator[Batch]:
        """The first so many frames."""
        left = num_frames
        for frames, acts, levels in self._validation() if self.sae is not None else self._play():
            yield frames[:left], acts[:left], levels[:left]
            left -= len(frames)
            if left <= 0:
                return

    def _validation(self) -> Iterator[Batch]:
        for batch in self._data.val_dataloader():
            if batch.frames is None:
                raise ValueError("FeatureVisualisation: the validation batches carry no frames to show")
            yield batch.frames, batch.activations[self.tap].to(self._device), batch.levels

    def _play(self) -> Iterator[Batch]:
        environment: EnvironmentSettings = self._data.environment
        for start in range(0, len(VALIDATION_LEVELS), _LEVELS_AT_ONCE):
            seen: list[PlayedStep] = []
            play_episodes(
                self.agent,
                VALIDATION_LEVELS[start : start + _LEVELS_AT_ONCE],
                settings=environment,
                num_environments=_LEVELS_AT_ONCE,
                max_steps=_LONGEST_EPISODE,
                precision=self.precision,
                observer=seen.append,
            )
            levels = torch.from_numpy(np.concatenate([step.levels for step in seen]))
            played = torch.from_numpy(np.concatenate([step.frames for step in seen]))
            for rows in torch.arange(len(levels)).split(_FRAMES_AT_ONCE):
                frames = played[rows]
                with autocast(self.precision, self._device):
                    recorded = self.agent.forward(frames.to(self._device), record=(self.tap,), outputs=False)
                yield frames, recorded.activations[self.tap], levels[rows]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put torch's, numpy's and Python's generators back as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
