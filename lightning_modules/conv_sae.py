"""Trains a sparse autoencoder on the activations of one tap."""

from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from datamodules import ActivationBatch
from lightning_modules.sae_losses import count_firings, reconstruction_loss, sparsity_loss
from lightning_modules.sae_metrics import Coverage, ExplainedVariance, Sparsity
from lightning_modules.sae_revival import resample_latents
from networks import FiringCounter, SAEBase, SparseAutoencoder
from networks.compilation import compile_in_place

_TRAINING = ("loss", "reconstruction_loss", "sparsity_loss", "train_l0")


class SAEObjective(nn.Module):
    """The loss of one batch, as one module, so that it compiles as one piece."""

    def __init__(self, sae: SAEBase, knee: float | None) -> None:
        super().__init__()
        self.sae, self.knee = sae, knee

    def forward(
        self, acts: Float[Tensor, "B C *HW"], coefficients: Float[Tensor, " F"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " 4"], Int[Tensor, " F"]]:
        """The loss, the four numbers named in `_TRAINING`, and on how many inputs each latent fired.

        `coefficients` is the weight of each latent's penalty.
        """
        latents = self.sae.encode(acts)
        errors = (self.sae.decode(latents) - acts) / self.sae.scale
        reconstruction = reconstruction_loss(errors)
        sparsity = sparsity_loss(latents, self.sae.decoder_norms(), coefficients, self.knee)
        loss = reconstruction + sparsity
        fired = count_firings(latents)
        l0 = fired.sum() / (acts.numel() // acts.shape[1])
        return loss, torch.stack([loss, reconstruction, sparsity, l0]).detach(), fired


class ConvSAE(LightningModule):
    """A ReLU autoencoder with squared error plus a penalty on the size of its latents.

    Channels and normalisation come from the data module. The learning rate rises over `warmup_steps`, and falls to 0
    over the last `decay_fraction` of the run; the penalty rises over `sparsity_warmup_steps`. Every
    `resample_every` steps, until the learning rate falls, latents that have not fired for `dead_window` inputs begin
    anew. Losses and firings stay on the device, and are looked at every `log_every_n_steps` only.

    Args:
        tap: where the activations are from.
        expansion: latents per channel.
        kernel_size: odd width of the convolutions' window; above 1 training needs whole maps.
        in_channels: how many channels the tap must have; null takes what it has.
        sparsity_coefficient: weight of the penalty.
        rare_frequency: a latent that fires on a smaller share of inputs is penalised in proportion less, so that it
            lives on what the others leave unexplained; null penalises all alike.
        sparsity_knee: latents far above it are hardly penalised more (see `sparsity_loss`); null for plain L1.
        learning_rate: Adam's, at its height.
        warmup_steps: steps until it is reached.
        decay_fraction: part of the run over which it falls.
        sparsity_warmup_steps: steps until the penalty has its full weight.
        dead_window: inputs without firing after which a latent is dead while training; an input is one position.
        resample_every: steps between revivals; null for none.
        compile: compile the loss; without a C++ compiler the run goes on eagerly.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        tap: str = "conv4a",
        expansion: int = 4,
        kernel_size: int = 1,
        in_channels: int | None = None,
        sparsity_coefficient: float = 1.0,
        sparsity_knee: float | None = 1.0,
        rare_frequency: float | None = 1e-3,
        learning_rate: float = 1e-2,
        warmup_steps: int = 100,
        decay_fraction: float = 0.3,
        sparsity_warmup_steps: int = 300,
        dead_window: int = 1_000_000,
        resample_every: int | None = 250,
        compile: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= decay_fraction <= 1:
            raise ValueError(f"decay_fraction {decay_fraction} is no fraction: choose 0 to 1")
        for name, value in (
            ("learning_rate", learning_rate),
            ("sparsity_knee", sparsity_knee),
            ("rare_frequency", rare_frequency),
        ):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: it must be above 0")
        for name, value in (
            ("sparsity_coefficient", sparsity_coefficient),
            ("warmup_steps", warmup_steps),
            ("sparsity_warmup_steps", sparsity_warmup_steps),
        ):
            if value < 0:
                raise ValueError(f"{name} is {value}: it cannot be below 0")
        if resample_every is not None and resample_every < 1:
            raise ValueError(f"resample_every is {resample_every}: at least 1 is needed, or null for no revival")
        self.save_hyperparameters()
        self.tap, self.expansion, self.kernel_size, self.in_channels = tap, expansion, kernel_size, in_channels
        self.sparsity_coefficient, self.sparsity_knee = sparsity_coefficient, sparsity_knee
        self.rare_frequency, self.sparsity_warmup_steps = rare_frequency, sparsity_warmup_steps
        self.learning_rate, self.warmup_steps, self.decay_fraction = learning_rate, warmup_steps, decay_fraction
        self.dead_window, self.resample_every, self.compile_loss = dead_window, resample_every, compile
        self._sums: Tensor | None = None  # of what is logged, since the last time
        self._first_bad: Tensor | None = None  # the first step whose loss was not finite
        self._added = 0

    @property
    def sae(self) -> SAEBase:
        """The autoencoder; there from `setup` on."""
        return self.objective.sae

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Make the autoencoder to the measure of the data, once.

        Raises:
            ValueError: the tap is not recorded, or has other channels than asked for.
        """
        if hasattr(self, "objective"):
            return
        shapes = self._data.activation_shapes
        if self.tap not in shapes:
            raise ValueError(
                f"model.init_args.tap is {self.tap!r}, but the data hold {', '.join(shapes)}: "
                "set data.init_args.taps to the same"
            )
        shape = shapes[self.tap]
        if self.in_channels not in (None, shape[0]):
            raise ValueError(
                f"model.init_args.in_channels is {self.in_channels}, but {self.tap} of this agent has {shape[0]}: "
                "choose another agent or tap, or set in_channels to null"
            )
        sae = SparseAutoencoder(shape[0], self.expansion, self.kernel_size)
        sae.tap = self.tap
        sae.set_normalisation(*self._data.statistics(self.tap))
        self.objective = SAEObjective(sae, self.sparsity_knee)
        self.firing = FiringCounter(sae.num_latents, self.dead_window)
        self.variance = ExplainedVariance(shape)
        self.latent_sparsity, self.raw_sparsity = Sparsity(sae.num_latents), Sparsity(shape[0])
        self.coverage = Coverage()
        if self.compile_loss and stage == "fit":
            compile_in_place(self.objective)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        acts = batch.activations[self.tap]
        step = self.global_step
        if self._resamples(step):
            dead = self.firing.dead()
            resample_latents(self.sae, self.optimizers().optimizer, dead, acts, seed=step)  # type: ignore[union-attr]
            self.firing.forget(dead)
        weight = self.sparsity_coefficient * min(1.0, (step + 1) / max(1, self.sparsity_warmup_steps))
        loss, numbers, fired = self.objective(acts, weight * self._shares())
        self.firing.update(fired, acts.numel() // acts.shape[1])
        self._tally(numbers, step)
        return loss

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Add a batch of whole maps to the metrics."""
        acts = batch.activations[self.tap]
        inside = (batch.inside or {}).get(self.tap)
        latents = self.sae.encode(acts)
        self.variance.update(self.sae.decode(latents).to(acts.dtype), acts)
        self.latent_sparsity.update(latents, inside)
        self.raw_sparsity.update(acts, inside)
        self.coverage.update(batch.levels)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set."""
        latents, raw = self.latent_sparsity.compute(), self.raw_sparsity.compute()
        values = {**self.variance.compute(), **latents, "l0_raw": raw["l0"], "l0_raw_inside": raw["l0_inside"]}
        values |= self.coverage.compute()
        for name, value in values.items():
            if not (name.endswith("_inside") and value.isnan()):  # taps and games without a maze
                self.log(f"sae/{name}", value.float(), rank_zero_only=False)
        for metric in (self.variance, self.latent_sparsity, self.raw_sparsity, self.coverage):
            metric.reset()

    def configure_optimizers(self) -> Any:
        """Adam, fused, with a warm-up and a linear end.

        Raises:
            ValueError: the run has no end.
        """
        optimiser = torch.optim.Adam(self.objective.parameters(), lr=self.learning_rate, fused=True)
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise ValueError(
                "the run has no end, so its learning rate cannot fall: set trainer.max_steps or max_epochs"
            )
        falling = max(1.0, self.decay_fraction * total)

        def height(step: int) -> float:
            return min(1.0, (step + 1) / max(1, self.warmup_steps), max(0.0, total - step) / falling)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, height)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_end(self) -> None:
        """Look at the last steps too."""
        self._stop_if_bad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite, and note whose activations these are."""
        self._stop_if_bad()
        checkpoint["agent_hash"] = self._data.agent.weights_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another agent or of another size.

        Raises:
            ValueError: says which, and what to do.
        """
        if checkpoint["agent_hash"] != self._data.agent.weights_hash:
            raise ValueError(
                "ckpt_path: this checkpoint was trained on another agent's activations: "
                "set data.init_args.agent to that agent, or start without ckpt_path"
            )
        own = self.state_dict()
        for name, tensor in checkpoint["state_dict"].items():
            if name in own and own[name].shape != tensor.shape:
                raise ValueError(
                    f"ckpt_path: {name} of this checkpoint is {tuple(tensor.shape)}, but {self.tap} and expansion "
                    f"{self.expansion} need {tuple(own[name].shape)}: use the checkpoint's own tap and arguments"
                )

    def sae_metadata(self) -> dict[str, Any]:
        """What the saved autoencoder's file says of its making."""
        agent = self._data.agent
        return {
            "kind": type(self.sae).__name__,
            "tap": self.tap,
            "agent_hash": agent.weights_hash,
            "agent_architecture": agent.architecture,
            "normalisation": {"mean": self.sae.mean.tolist(), "scale": float(self.sae.scale)},
            "training": {name: value for name, value in self.hparams.items() if name != "compile"},
            "steps": self.global_step,
        }

    def _resamples(self, step: int) -> bool:
        if self.resample_every is None or step == 0 or step % self.resample_every:
            return False
        return step < (1 - self.decay_fraction) * self.trainer.estimated_stepping_batches

    def _shares(self) -> Float[Tensor, " F"]:
        """What part of the penalty each latent bears."""
        if self.rare_frequency is None:
            return torch.ones(self.sae.num_latents, device=self.device)
        # not a number before the first input
        return (self.firing.frequency() / self.rare_frequency).clamp_max(1).nan_to_num(1).float()

    def _tally(self, numbers: Float[Tensor, " 4"], step: int) -> None:
        """Add up what is logged; every `log_every_n_steps` log it and look whether all of it was finite."""
        if self._sums is None or self._first_bad is None:
            self._sums = torch.zeros_like(numbers)
            self._first_bad = torch.full((), torch.inf, device=numbers.device)
        self._sums += numbers
        self._added += 1
        self._first_bad = torch.where(numbers.isfinite().all(), self._first_bad, self._first_bad.clamp_max(step))
        if (step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._stop_if_bad()
            for name, value in zip(_TRAINING, self._sums / self._added, strict=True):
                self.log(f"sae/{name}", value, prog_bar=name == "loss")
            explained = 1 - self._sums[1] / self._added / self.sae.in_channels
            self.log("sae/train_explained_variance", explained, prog_bar=True)
            self._sums.zero_()
            self._added = 0

    def _stop_if_bad(self) -> None:
        if self._first_bad is not None and torch.isfinite(self._first_bad):
            raise ValueError(
                f"the loss is not finite since step {int(self._first_bad)}: lower model.init_args.learning_rate and "
                "start again, or go on from a checkpoint before that step"
            )
