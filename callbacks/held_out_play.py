"""Plays the agent that is being trained on levels that it does not train on: how much of what it learns generalises?"""

import copy
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.trainer_access import log_now, misplaced, trainer_precision
from environments import held_out_levels
from interpretability.episodes import GAME_TIME_OUT, Episodes, play_episodes
from networks import TappedNetwork


class HeldOutPlay(Callback):
    """Logs `held_out/return`, `held_out/solved`, `held_out/episode_length`, with 95 % bounds, and `held_out/gap`.

    The same held-out levels are played by `module.agent` with the same action noise each time, before every so many
    epochs, the first included, and with the final weights. Values lie at the environment frames that the data module
    has played (`env_steps`), where it counts them, else at the trainer's steps. `held_out/gap` is the return of
    training (`agent/return`, where that is logged) minus `held_out/return`: in a run on few training levels the
    generalisation gap. Training's return is a running mean over the episodes that ended last, of weights somewhat
    older than those played here, and leaves out episodes that are still stuck; take `studies.LearningCurve`
    with `training_levels` for numbers to report.

    An evaluation comes before an epoch rather than after one, so that the training's metrics of the epoch are there
    and a resumed run repeats none. Random generators, gradients, modes and compiled code are left as they are: the
    agent is played through a twin that shares its weights and not its compiled call. On several processes rank 0 plays.

    Args:
        num_levels: the first so many of the split.
        every_n_epochs: play before every so-many-th epoch.
        split: which held-out levels; keep `test` for what is reported.
        greedy: play the likeliest action rather than sample.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.

    Attributes:
        episodes: of the last evaluation.

    Raises:
        ValueError: an argument below 1, more levels than there are, or, in `fit`, a module without an agent, or data
            without an environment.
    """

    episodes: Episodes | None = None

    def __init__(
        self,
        num_levels: int = 100,
        every_n_epochs: int = 50,
        split: Literal["validation", "test"] = "validation",
        greedy: bool = False,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
    ) -> None:
        counts = {"every_n_epochs": every_n_epochs, "num_environments": num_environments, "max_steps": max_steps}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}: at least 1 is needed")
        self.levels = held_out_levels(split, num_levels)
        self.every_n_epochs = every_n_epochs
        self.greedy, self.seed, self.num_environments, self.max_steps = greedy, seed, num_environments, max_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be played before any work."""
        if not isinstance(getattr(pl_module, "agent", None), TappedNetwork):
            raise misplaced(pl_module, "HeldOutPlay plays the agent being trained", "trains none")
        if not hasattr(getattr(trainer, "datamodule", None), "environment"):
            raise ValueError("HeldOutPlay plays the game of the data, and these have no environment: take it out")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play before every so-many-th epoch."""
        if trainer.current_epoch % self.every_n_epochs == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Play with the final weights."""
        self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, module: Any) -> None:
        # the values belong to the frames played so far, which `self.log` could not say
        frames = getattr(trainer.datamodule, "env_steps", trainer.global_step)  # type: ignore[attr-defined]
        log_now(trainer, self._play(trainer, module), frames)

    @rank_zero_only
    def _play(self, trainer: Trainer, module: Any) -> dict[str, float]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        twin = copy.copy(module.agent)  # shares everything but the compiled call: other batch sizes recompile nothing
        self.episodes = play_episodes(
            twin,
            self.levels,
            settings=data.environment,
            greedy=self.greedy,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=trainer_precision(trainer),
            progress="play held-out levels" if trainer.progress_bar_callback is not None else None,
        )
        metrics = self.episodes.metrics("held_out")
        trained = trainer.callback_metrics.get("agent/return")
        if trained is not None:
            metrics["held_out/gap"] = float(trained) - metrics["held_out/return"]
        return metrics
