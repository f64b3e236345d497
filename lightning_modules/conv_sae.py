"""Trains a sparse autoencoder on the activations of one tap."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from datamodules import ActivationBatch
from lightning_modules.kernel_adam import KernelAdam
from lightning_modules.run_checks import refuse_copy, refuse_other_agent, tell_changed_settings
from lightning_modules.sae_arguments import check_member, check_run
from lightning_modules.sae_kernel import SAEKernel, kernel_parameters, load_kernel, named
from lightning_modules.sae_objective import SAEObjective
from lightning_modules.sae_revival import resample_latents
from lightning_modules.sae_training import (
    LossTally,
    may_fuse,
    origin_metadata,
    start_at_median,
    tap_shape,
    warm_up_and_fall,
)
from lightning_modules.sae_validation import SAEValidation
from networks import FiringCounter, ProgressNow, SAEBase, SparseAutoencoder
from networks.compilation import compile_in_place

_FIXED_SETTINGS = ("kind", "tap", "in_channels", "expansion", "kernel_size")
"""Without which a checkpoint's weights are of no use."""


class ConvSAE(LightningModule):
    """Trains any kind of sparse autoencoder: its kind says what is minimised, all else is the same for each.

    Channels and normalisation come from the data module. The learning rate rises over `warmup_steps`, and falls to 0
    over the last `decay_fraction` of the run. Dead latents, which have not fired for `dead_window` inputs, are brought
    back in either or both of two ways: every `resample_every` steps, until the learning rate falls, they begin anew
    (for kinds whose latents do not compete for k places); and AuxK has them predict the reconstruction's error. Losses
    and firings stay on the device, and are looked at every `log_every_n_steps` only.

    Args:
        sae: the kind: called with the number of channels, expansion and kernel_size. In a configuration the
            class_path of a class in `networks`, with its remaining arguments as init_args.
        tap: where the activations are from.
        expansion: latents per channel.
        kernel_size: odd width of the convolutions' window; above 1 training needs whole maps.
        in_channels: how many channels the tap must have; null takes what it has.
        decoder_bias: what the decoder's bias begins as: zero (the mean of the training activations), or the
            geometric median of the first batch.
        learning_rate: Adam's, at its height.
        warmup_steps: steps until it is reached.
        decay_fraction: part of the run over which it falls.
        dead_window: inputs without firing after which a latent is dead while training; an input is one position.
        resample_every: steps between revivals; null for none.
        auxk_coefficient: weight of the AuxK loss (1/32 in its paper); null for none.
        auxk_latents: dead latents that it lets an input use; null for half the channels, about as in its paper.
        compile: compile the loss, on a CPU by `SAEKernel` where that knows the kind; without a C++ compiler the run
            goes on eagerly.

    Attributes:
        latent_columns, channel_columns: what the last validation found of each latent [F] and channel [C], by name.

    Raises:
        ValueError: an argument out of its range, or one that the kind refuses.
    """

    def __init__(
        self,
        tap: str = "conv4a",
        expansion: int = 4,
        kernel_size: int = 1,
        in_channels: int | None = None,
        sae: Callable[[int, int, int], SAEBase] = SparseAutoencoder,
        decoder_bias: Literal["zero", "geometric_median"] = "zero",
        learning_rate: float = 1e-2,
        warmup_steps: int = 100,
        decay_fraction: float = 0.3,
        dead_window: int = 1_000_000,
        resample_every: int | None = None,
        auxk_coefficient: float | None = None,
        auxk_latents: int | None = None,
        compile: bool = True,
    ) -> None:
        super().__init__()
        check_run(decoder_bias, warmup_steps, decay_fraction, dead_window)
        check_member(learning_rate, resample_every, auxk_coefficient, auxk_latents)
        with torch.device("meta"):  # a kind's refusal now rather than after activations were recorded; 4096 is plenty
            sae(in_channels or 4096, expansion, kernel_size)
        self.save_hyperparameters(ignore="sae")  # a class is no primitive; its file says what it was made with
        self.make_sae, self.decoder_bias = sae, decoder_bias
        self.tap, self.expansion, self.kernel_size, self.in_channels = tap, expansion, kernel_size, in_channels
        self.learning_rate, self.warmup_steps, self.decay_fraction = learning_rate, warmup_steps, decay_fraction
        self.dead_window, self.resample_every, self.compile_loss = dead_window, resample_every, compile
        self.auxk_coefficient, self.auxk_latents = auxk_coefficient, auxk_latents
        self._tally = LossTally(
            "lower model.init_args.learning_rate and start again, or go on from a checkpoint before that step"
        )
        self.latent_columns: dict[str, Tensor] = {}
        self.channel_columns: dict[str, Tensor] = {}
        self._kernel: SAEKernel | None = None
        self._kernel_adam: KernelAdam | None = None
        self._gradients: list[Tensor] | None = None

    @property
    def sae(self) -> SAEBase:
        """The autoencoder; there from `setup` on."""
        return self.objective.sae

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def check_data(self, data: Any) -> tuple[int, ...]:
        """The shape of the tap in some data.

        Raises:
            ValueError: the tap is not recorded, has other channels than asked for, or no maps for a wide kernel.
        """
        return tap_shape(data, self.tap, self.in_channels, self.kernel_size)

    def setup(self, stage: str) -> None:
        """Make the autoencoder to the measure of the data, once.

        Raises:
            ValueError: the tap is not recorded, has other channels than asked for, or no maps for a wide kernel.
        """
        if hasattr(self, "objective"):
            return
        shape = self.check_data(self._data)
        sae = self.make_sae(shape[0], self.expansion, self.kernel_size)
        sae.tap = self.tap
        sae.set_normalisation(*self._data.statistics(self.tap))
        auxk_latents = min(self.auxk_latents or max(1, shape[0] // 2), sae.num_latents)
        self.objective = SAEObjective(sae, self.auxk_coefficient, auxk_latents)
        self.firing = FiringCounter(sae.num_latents, self.dead_window)
        self.validation = SAEValidation(sae.num_latents, shape)
        if self.compile_loss and stage == "fit":
            compiled = compile_in_place(self.objective, device=self.trainer.strategy.root_device)
            if compiled and self.trainer.strategy.root_device.type == "cpu" and self.kernel_size == 1:
                self._kernel = load_kernel(shape[0], sae.num_latents)

    __deepcopy__ = refuse_copy

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        acts = batch.activations[self.tap]
        step = self.global_step
        if step == batch_idx == 0 and self.decoder_bias == "geometric_median":
            start_at_median([self.sae], acts)
        if self._resamples(step):
            dead = self.firing.dead()
            resample_latents(self.sae, self.optimizers().optimizer, dead, acts, seed=step)  # type: ignore[union-attr]
            self.firing.forget(dead)
        loss, numbers, fired = self._step(acts, ProgressNow(step, self.firing))
        self.firing.update(fired, acts.numel() // acts.shape[1])
        self._tally.add(numbers, step)
        if self._tally.due(self.trainer.log_every_n_steps):  # type: ignore[attr-defined]
            for name, value in self._tally.means().items():
                self.log(f"sae/{name}", value, prog_bar=name in ("loss", "train_explained_variance"))
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Gradients may have come with the loss."""
        if self._gradients is None:
            super().backward(loss, *args, **kwargs)
            return
        for parameter, gradient in zip(kernel_parameters(self.sae), self._gradients, strict=True):
            parameter.grad = gradient
        self._gradients = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Where directions are held at length 1, leave their lengths out of the step."""
        if self.sae.unit_norm_decoder and self._kernel_adam is None:
            self.sae.project_decoder_gradient()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the Trainer wants it; the compiled step does it itself."""
        if self._kernel_adam is not None and gradient_clip_algorithm in (None, "norm"):
            self._kernel_adam.largest_norm = gradient_clip_val
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and bring directions that learn back to length 1, before any callback saves them."""
        super().optimizer_step(*args, **kwargs)
        if self.sae.unit_norm_decoder and self.sae.decoder_weight.requires_grad and self._kernel_adam is None:
            self.sae.normalise_decoder()

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Add a batch of whole maps to the metrics."""
        inside = (batch.inside or {}).get(self.tap)
        self.validation.update(self.sae, batch.activations[self.tap], inside, batch.levels)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set, and how much latents resemble each other; keep the columns of
        single latents and channels.
        """
        values, self.latent_columns, self.channel_columns = self.validation.compute(self.sae)
        for name, value in values.items():
            self.log(f"sae/{name}", value.float(), rank_zero_only=False)
        self.validation.reset()

    def configure_optimizers(self) -> Any:
        """Adam, where possible fused or compiled with the rest of the step, with a warm-up and a linear end.

        Raises:
            ValueError: the run has no end.
        """
        fused = may_fuse(self.trainer)
        optimiser = torch.optim.Adam(self.objective.parameters(), lr=self.learning_rate, fused=fused or None)
        if self._kernel is not None and fused and KernelAdam.takes(self.sae):
            optimiser = self._kernel_adam = KernelAdam(self._kernel, self.sae, self.learning_rate)
        return warm_up_and_fall(
            optimiser, self.trainer.estimated_stepping_batches, self.warmup_steps, self.decay_fraction
        )

    def on_train_end(self) -> None:
        """Look at the last steps too."""
        self._tally.stop_if_bad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite, and note whose activations these are."""
        self._tally.stop_if_bad()
        checkpoint["agent_hash"] = self._data.agent.weights_hash
        checkpoint["sae_settings"] = self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another agent, kind, tap or size; say what else is configured otherwise now.

        Raises:
            ValueError: says which, and what to do.
        """
        refuse_other_agent(checkpoint, self._data.agent)
        if "sae_settings" not in checkpoint:
            raise ValueError("ckpt_path: this checkpoint is of another kind of training: start without ckpt_path")
        tell_changed_settings(checkpoint["sae_settings"], self._settings(), _FIXED_SETTINGS)

    def sae_metadata(self) -> dict[str, Any]:
        """What the saved autoencoder's file says of its making."""
        return {
            **origin_metadata(self.sae, self._data, self.trainer.world_size),
            "training": self._training(),
            "steps": self.global_step,
        }

    def _training(self) -> dict[str, Any]:
        return {name: value for name, value in self.hparams.items() if name != "compile"}

    def _settings(self) -> dict[str, Any]:
        """What is configured, by name, with what the autoencoder is."""
        return {**self._training(), "kind": type(self.sae).__name__, **self.sae.config()}

    def _step(self, acts: Float[Tensor, "B C *HW"], progress: ProgressNow) -> Any:
        """What the objective computes, by the kernel where it can; AuxK is needed only if latents are dead."""
        if self._kernel is not None and (self.auxk_coefficient is None or not progress.dead.any()):
            terms = self._kernel.takes(self.sae, acts, progress)
            if terms is not None:
                trainer: Any = self.trainer
                if self._kernel_adam is not None and trainer.world_size == trainer.accumulate_grad_batches == 1:
                    values, fired, self._gradients = self._kernel.run(self.sae, acts, terms)
                    loss, numbers = values[0], named(values, terms)
                else:
                    loss, numbers, fired = self._kernel(self.sae, acts, terms)
                if self.auxk_coefficient is not None:
                    numbers["auxk_loss"] = torch.zeros(())
                return loss, numbers, fired
        return self.objective(acts, progress.tensors())

    def _resamples(self, step: int) -> bool:
        if self.resample_every is None or step == 0 or step % self.resample_every:
            return False
        return step < (1 - self.decay_fraction) * self.trainer.estimated_stepping_batches
