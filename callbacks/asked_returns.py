"""Plays held-out levels with the decision transformer being trained, at several returns asked for."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from callbacks.trainer_access import log_now, misplaced, trainer_precision
from environments import held_out_levels
from interpretability.asked_play import (
    AskedPlay,
    check_asked,
    confusion,
    draw_asked,
    draw_attention,
    draw_confusion_of_play,
    play_asked,
    replays,
)
from interpretability.episodes import GAME_TIME_OUT
from interpretability.films import film_of_replays
from interpretability.pictures import save_figure
from interpretability.replay import Replay
from networks import GAMMA, MAX_RETURN, DecisionTransformer, Precision, TrajectoryWindow, autocast

_CAPTIONS = {True: "solved", False: "failed"}


class AskedReturns(Callback):
    """Logs `dt/return`, `dt/solved`, `dt/episode_length` and `dt/delivered` (the discounted return) at the highest
    return asked for, and the same under `dt/rtg_RETURN/` at each, with 95 % bounds over levels.

    The same levels are played with the same action noise each time: before every so many epochs, but for the first, and
    with the final weights. Draws, into the run's `figures/` and TensorBoard: what was delivered over what was
    asked for, the actions taken against the oracle's direction, attention patterns over the beginning of a level, and
    a film of some levels at the highest and the lowest return. Random generators, gradients and compiled code are left
    as they are. On several processes rank 0 plays.

    Args:
        asked: discounted returns asked for in the beginning: 10 x gamma^(steps to the gem).
        num_levels: the first so many of the split.
        every_n_epochs: play before every so-many-th epoch.
        split: which held-out levels; keep `test` for what is reported.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        replayed: levels that confusions are counted over.
        filmed: levels in the film.

    Attributes:
        play: of the last evaluation.

    Raises:
        ValueError: an argument below 1, more levels than there are, or, in `fit`, another kind of network.
    """

    play: AskedPlay | None = None

    def __init__(
        self,
        asked: tuple[float, ...] | list[float] = (10.0, 1.0, 0.1, 0.0),
        num_levels: int = 100,
        every_n_epochs: int = 10,
        split: Literal["validation", "test"] = "validation",
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        replayed: int = 16,
        filmed: int = 3,
    ) -> None:
        counts = {"every_n_epochs": every_n_epochs, "num_environments": num_environments, "max_steps": max_steps}
        for name, count in (counts | {"replayed": replayed, "filmed": filmed}).items():
            if count < 1:
                raise ValueError(f"{name} is {count}: at least 1 is needed")
        check_asked(asked)
        self.asked, self.levels = tuple(asked), held_out_levels(split, num_levels)
        self.every_n_epochs, self.seed, self.num_environments = every_n_epochs, seed, num_environments
        self.max_steps, self.replayed, self.filmed = max_steps, replayed, filmed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be played before any work."""
        if not isinstance(getattr(pl_module, "agent", None), DecisionTransformer):
            raise misplaced(pl_module, "AskedReturns plays a decision transformer", "trains none")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play before every so-many-th epoch."""
        if trainer.current_epoch > 0 and trainer.current_epoch % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play with the final weights."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # Lightning has all ranks ask, or the one waits
        log_now(trainer, self._play(trainer, module, folder / "figures"), trainer.global_step)

    @rank_zero_only
    def _play(self, trainer: Trainer, module: Any, folder: Path) -> dict[str, float]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        twin = copy.copy(module.agent)  # shares everything but the compiled call
        precision = trainer_precision(trainer)
        self.play = play_asked(
            twin,
            self.asked,
            self.levels,
            settings=data.environment,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=precision,
            progress=trainer.progress_bar_callback is not None,
        )
        self._draw(trainer, twin, data.environment, precision, folder)
        return self.play.metrics()

    def _draw(
        self, trainer: Trainer, network: DecisionTransformer, settings: Any, precision: Precision, folder: Path
    ) -> None:
        assert self.play is not None
        title = f"step {trainer.global_step}"
        shown = replays(self.play, settings, min(self.replayed, len(self.levels)))
        figures: dict[str, Figure] = {
            "confusion": draw_confusion_of_play(confusion(shown), f"asked for {self.play.asked[0]:g}, {title}"),
            "attention": draw_attention(
                _patterns(network.asking(self.play.asked[0]), shown[0], precision),
                network.tokens,
                f"level {shown[0].level}, asked for {self.play.asked[0]:g}, {title}",
            ),
        }
        if len(self.play.asked) > 1:
            figures["asked_returns"] = draw_asked(self.play, title)
        for name, figure in figures.items():
            save_figure(folder / f"{name}.png", figure)
        filmed = min(self.filmed, len(shown))
        last = len(self.play.asked) - 1
        film = film_of_replays(
            [*shown[:filmed], *(replays(self.play, settings, filmed, last) if last else [])],
            [
                f"asked {self.play.asked[index]:g}: {_CAPTIONS[bool(self.play.episodes[index].solved[row])]}"
                for index in dict.fromkeys((0, last))
                for row in range(filmed)
            ],
        )
        film.save(folder / "play.gif")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, figure in figures.items():
                    logger.experiment.add_figure(f"dt/{name}", figure, trainer.global_step)
                logger.experiment.file_writer.add_summary(film.summary("dt/play"), trainer.global_step)


@torch.no_grad()
def _patterns(network: DecisionTransformer, shown: Replay, precision: Precision) -> list[Float[np.ndarray, "H S S"]]:
    """Attention patterns of each block over the beginning of an episode."""
    steps = min(network.context, len(shown.actions))
    device = next(network.parameters()).device
    returns = (network.asked_return / GAMMA ** torch.arange(steps)).clamp_max(MAX_RETURN)[None]
    window = TrajectoryWindow(
        torch.from_numpy(shown.frames[None, :steps]),
        torch.from_numpy(shown.actions[None, :steps]),
        returns,
        torch.arange(steps)[None],
        torch.ones(1, steps, dtype=torch.bool),
    )
    taps = [f"attention{layer}" for layer in range(1, network.depth + 1)]
    with autocast(precision, device):
        found = network.forward(TrajectoryWindow(*(part.to(device) for part in window)), record=taps, outputs=False)
    return [acts[0].transpose(0, 1).flatten(1, 2).float().cpu().numpy() for acts in found.activations.values()]
