"""Plays the agent with the autoencoder in place of its tap: does what was learnt carry what the agent needs?"""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.trainer_access import log_now, misplaced
from environments import held_out_levels
from interpretability.episodes import GAME_TIME_OUT
from interpretability.splice import SpliceResult, check_ablated_levels, evaluate_splice


class SpliceEvaluation(Callback):
    """Logs the `splice/` metrics (see `SpliceResult.metrics`) with the final weights, and while training if asked.

    The first `num_levels` validation levels are played in four arms (untouched, spliced, mean-ablated and
    zero-ablated) with the same action noise, each episode to the game's own end unless `max_steps` is less. Agent,
    game and precision are the data module's, so the autoencoder meets the activations that it was trained on. Random
    generators, gradients and the autoencoder's counters are left as they are. On several processes rank 0 plays.

    Args:
        num_levels: validation levels to play.
        every_n_validations: also after every so many validations in `fit`; null for the end only.
        greedy: play the likeliest action rather than sample.
        seed: of the action noise.
        num_environments: levels played at a time.
        max_steps: cut episodes here and count them as unsolved; 1000 is the game's own time-out.
        compare_every: policies are compared on every so-many-th step of untouched play.
        ablated_levels: the first so many levels are also played with the tap's mean and zeros, which takes longest, as
            such an agent seldom finishes; null for all.

    Attributes:
        result: of the last evaluation.

    Raises:
        ValueError: an argument below 1, more levels than there are, or, before training, a module without an
            autoencoder of its own.
    """

    result: SpliceResult | None = None

    def __init__(
        self,
        num_levels: int = 200,
        every_n_validations: int | None = None,
        greedy: bool = False,
        seed: int = 0,
        num_environments: int = 64,
        max_steps: int = GAME_TIME_OUT,
        compare_every: int = 4,
        ablated_levels: int | None = None,
    ) -> None:
        counts = {"num_environments": num_environments, "max_steps": max_steps, "compare_every": compare_every}
        if every_n_validations is not None:
            counts["every_n_validations"] = every_n_validations
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}: at least 1 is needed")
        self.levels = held_out_levels("validation", num_levels)
        check_ablated_levels(ablated_levels, num_levels)
        self.ablated_levels = ablated_levels
        self.every_n_validations = every_n_validations
        self.greedy, self.seed, self.num_environments = greedy, seed, num_environments
        self.max_steps, self.compare_every = max_steps, compare_every
        self._validations = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether there is something to splice in."""
        if not hasattr(pl_module, "sae"):
            raise misplaced(pl_module, "SpliceEvaluation needs a module with one autoencoder", "is none")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate after every so many validations of a fit."""
        if self.every_n_validations is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            log_now(trainer, self._evaluate(trainer, pl_module), trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate with the final weights."""
        log_now(trainer, self._evaluate(trainer, pl_module), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were, so that a resumed run keeps the rhythm."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the count of validations."""
        self._validations = state_dict["validations"]

    @rank_zero_only
    def _evaluate(self, trainer: Trainer, module: Any) -> dict[str, float]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.result = evaluate_splice(
            data.agent.to(module.device),
            module.tap,
            module.sae,
            self.levels,
            settings=data.environment,
            greedy=self.greedy,
            seed=self.seed,
            num_environments=self.num_environments,
            max_steps=self.max_steps,
            precision=data.precision,
            compare_every=self.compare_every,
            ablated_levels=self.ablated_levels,
            progress=trainer.progress_bar_callback is not None,
        )
        return self.result.metrics()
