"""Trains several sparse autoencoders on the same activations of one tap, in one pass."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from datamodules import ActivationBatch
from lightning_modules.run_checks import refuse_copy, refuse_other_agent, tell_changed_settings
from lightning_modules.sae_arguments import check_run
from lightning_modules.sae_kernel import load_kernel
from lightning_modules.sae_metrics import Coverage, ExplainedVariance, Firing, Sparsity, dictionary_metrics
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
from lightning_modules.sweep_member import SweepMember, expand
from lightning_modules.sweep_objective import SweepObjective
from networks import FiringCounter, ProgressNow, SAEBase
from networks.compilation import compile_in_place

_FIXED_SETTINGS = ("tap", "in_channels")
"""Without which a checkpoint's weights are of no use."""


class SAESweep(LightningModule):
    """Trains many autoencoders at once, to choose from: every batch is read, and every frame played, once for all.

    Each member is trained as `ConvSAE` would train it alone on the same batches; nothing of one enters another. Metrics
    are named `sae/MEMBER/NAME`; what is the same for all (`sae/l0_raw`, `sae/validation_frames`) has no member.
    `callbacks.SAESweepReport` saves every member as an autoencoder of its own and draws what they cost in latents and
    bring in explained variance.

    Args:
        members: one by one or as grids.
        tap: where the activations are from.
        in_channels: how many channels the tap must have; null takes what it has.
        decoder_bias: what the decoders' biases begin as: zero (the mean of the training activations), or the geometric
            median of the first batch.
        warmup_steps: steps until the learning rates are reached.
        decay_fraction: part of the run over which they fall to 0.
        dead_window: inputs without firing after which a latent is dead while training; an input is one position.
        members_at_once: members computed together; null for all that are alike on an accelerator, and one after the
            other on a CPU. The numbers are the same.
        compile: compile the loss, on a CPU by `SAEKernel` where that knows a kind; without a C++ compiler the run goes
            on eagerly.

    Raises:
        ValueError: an argument out of its range, or members that cannot be (see `sweep_member.expand`).
    """

    def __init__(
        self,
        members: list[SweepMember],
        tap: str = "conv4a",
        in_channels: int | None = None,
        decoder_bias: Literal["zero", "geometric_median"] = "zero",
        warmup_steps: int = 100,
        decay_fraction: float = 0.3,
        dead_window: int = 1_000_000,
        members_at_once: int | None = None,
        compile: bool = True,
    ) -> None:
        super().__init__()
        check_run(decoder_bias, warmup_steps, decay_fraction, dead_window)
        if members_at_once is not None and members_at_once < 1:
            raise ValueError(f"members_at_once is {members_at_once}: at least 1 is needed, or null")
        self.save_hyperparameters(ignore="members")  # classes are no primitives; the files say what they were made with
        self.members = expand(members, in_channels)
        self.tap, self.in_channels, self.decoder_bias = tap, in_channels, decoder_bias
        self.warmup_steps, self.decay_fraction, self.dead_window = warmup_steps, decay_fraction, dead_window
        self.members_at_once, self.compile_loss = members_at_once, compile
        self._tally = LossTally("lower the learning_rate of these in model.init_args.members and start again")

    @property
    def saes(self) -> dict[str, SAEBase]:
        """The autoencoders by name; there from `setup` on."""
        return {name: objective.sae for name, objective in zip(self.objective.names, self._objectives, strict=True)}

    @property
    def _objectives(self) -> Sequence[SAEObjective]:
        return self.objective.members  # type: ignore[return-value]

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def check_data(self, data: Any) -> tuple[int, ...]:
        """The shape of the tap in some data.

        Raises:
            ValueError: the tap is not recorded, has other channels than asked for, or no maps for a wide kernel.
        """
        return tap_shape(data, self.tap, self.in_channels, max(member.kernel_size for member in self.members))

    def setup(self, stage: str) -> None:
        """Make the autoencoders to the measure of the data, once.

        Raises:
            ValueError: the tap is not recorded, or has other channels than asked for.
        """
        if hasattr(self, "objective"):
            return
        shape = self.check_data(self._data)
        statistics = self._data.statistics(self.tap)
        objectives = {}
        for member in self.members:
            sae = member.make(shape[0])
            sae.tap = self.tap
            sae.set_normalisation(*statistics)
            auxk_latents = min(member.auxk_latents or max(1, shape[0] // 2), sae.num_latents)
            objectives[member.name] = SAEObjective(sae, member.auxk_coefficient, auxk_latents)
        self.objective = SweepObjective(objectives, self.members_at_once)
        self.firing = FiringCounter(sum(self.objective.widths), self.dead_window)  # of one member after the other
        self.variances: Any = nn.ModuleList(ExplainedVariance(shape) for _ in self.members)
        self.sparsities: Any = nn.ModuleList(Sparsity(width) for width in self.objective.widths)
        self.firings: Any = nn.ModuleList(Firing(width, shape[1:]) for width in self.objective.widths)
        self.raw_sparsity, self.coverage = Sparsity(shape[0]), Coverage()
        if (
            self.compile_loss
            and stage == "fit"
            and compile_in_place(self.objective, device=self.trainer.strategy.root_device)
        ):
            self._load_kernels()

    __deepcopy__ = refuse_copy

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        """The summed loss of one batch."""
        acts = batch.activations[self.tap]
        step = self.global_step
        if step == batch_idx == 0 and self.decoder_bias == "geometric_median":
            start_at_median(list(self.saes.values()), acts)
        self._resample(acts, step)
        loss, numbers, fired = self.objective(acts, ProgressNow(step, self.firing).tensors())
        self.firing.update(fired, acts.numel() // acts.shape[1])
        self._tally.add(numbers, step)
        if self._tally.due(self.trainer.log_every_n_steps):  # type: ignore[attr-defined]
            self._log_training(loss)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the Trainer wants it, of each member by itself: together they would shrink by what one of them does."""
        if gradient_clip_val:
            clip = clip_grad_value_ if gradient_clip_algorithm == "value" else clip_grad_norm_
            for objective in self._objectives:
                clip(list(objective.parameters()), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Where directions are held at length 1, leave their lengths out of the step."""
        for sae in self.saes.values():
            if sae.unit_norm_decoder:
                sae.project_decoder_gradient()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and bring the directions back to length 1, before any callback saves them."""
        super().optimizer_step(*args, **kwargs)
        for sae in self.saes.values():
            if sae.unit_norm_decoder:
                sae.normalise_decoder()

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Add a batch of whole maps to every member's metrics."""
        acts = batch.activations[self.tap]
        inside = (batch.inside or {}).get(self.tap)
        metrics = zip(self.saes.values(), self.variances, self.sparsities, self.firings, strict=True)
        for sae, variance, sparsity, firing in metrics:
            latents = sae.encode(acts)
            firing.update(latents)
            variance.update(sae.decode(latents).to(acts.dtype), acts)
            sparsity.update(latents, inside, sae.decoder_norms())
        self.raw_sparsity.update(acts.abs(), inside)
        self.coverage.update(batch.levels)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation set, and how much a member's latents resemble each other."""
        raw: dict[str, Tensor] = self.raw_sparsity.compute()
        values = {"l0_raw": raw["l0"], "l0_raw_inside": raw["l0_inside"], **self.coverage.compute()}
        metrics = zip(self.saes.items(), self.variances, self.sparsities, self.firings, strict=True)
        for (name, sae), variance, sparsity, firing in metrics:
            own = dictionary_metrics(sae.directions().flatten(1), sae.decoder_norms(), firing.compute())
            own |= variance.compute() | sparsity.compute()
            values |= {f"{name}/{key}": value for key, value in own.items()}
        for name, value in values.items():
            if not (name.endswith("_inside") and value.isnan()):  # taps and games without a maze
                self.log(f"sae/{name}", value.float(), rank_zero_only=False)
        for metric in (*self.variances, *self.sparsities, *self.firings, self.raw_sparsity, self.coverage):
            metric.reset()

    def configure_optimizers(self) -> Any:
        """Adam, where possible fused, with a warm-up and a linear end; members of one learning rate share a group.

        Raises:
            ValueError: the run has no end.
        """
        rates: dict[float, list[nn.Parameter]] = {}
        for member, objective in zip(self.members, self._objectives, strict=True):
            rates.setdefault(member.learning_rate, []).extend(objective.parameters())
        groups = [{"params": parameters, "lr": rate} for rate, parameters in rates.items()]
        optimiser = torch.optim.Adam(groups, fused=may_fuse(self.trainer) or None)
        return warm_up_and_fall(
            optimiser, self.trainer.estimated_stepping_batches, self.warmup_steps, self.decay_fraction
        )

    def on_train_end(self) -> None:
        """Look at the last steps too."""
        self._tally.stop_if_bad()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save what is not finite, and note who the members are and whose activations these are."""
        self._tally.stop_if_bad()
        checkpoint["agent_hash"] = self._data.agent.weights_hash
        checkpoint["sae_members"] = self._settings()
        checkpoint["sae_sweep_settings"] = self._shared_settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another agent, of another tap or of other members; say what else has changed.

        Raises:
            ValueError: says which, and what to do.
        """
        refuse_other_agent(checkpoint, self._data.agent)
        if "sae_sweep_settings" in checkpoint:  # which those of before do not have
            tell_changed_settings(checkpoint["sae_sweep_settings"], self._shared_settings(), _FIXED_SETTINGS)
        then, now = checkpoint.get("sae_members", {}), self._settings()
        differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if differing or list(then) != list(now):
            raise ValueError(
                "ckpt_path: model.init_args.members are not those of this checkpoint "
                f"({', '.join(differing) or 'another order'}): use the same members, or start without ckpt_path"
            )

    def sae_metadata(self, name: str) -> dict[str, Any]:
        """What the saved file of one member says of its making."""
        sae = self.saes[name]
        return {
            **origin_metadata(sae, self._data, self.trainer.world_size),
            "training": self._training() | self._settings()[name]["training"],
            "member": name,
            "steps": self.global_step,
        }

    def _load_kernels(self) -> None:
        """On a CPU, have the fast step for members of every width that it is for."""
        if self.trainer.strategy.root_device.type != "cpu":
            return
        for index, sae in enumerate(self.saes.values()):
            kernel = load_kernel(sae.in_channels, sae.num_latents) if sae.kernel_size == 1 else None
            if kernel is not None:
                self.objective.kernels[index] = kernel

    def _training(self) -> dict[str, Any]:
        return {name: value for name, value in self.hparams.items() if name not in ("compile", "members_at_once")}

    def _shared_settings(self) -> dict[str, Any]:
        """What is configured for all members together, by name, with the channels that they have."""
        return {**self._training(), "in_channels": self._objectives[0].sae.in_channels}

    def _settings(self) -> dict[str, dict[str, Any]]:
        """What each member is and how it is trained, in primitives."""
        names = [item.name for item in fields(SweepMember) if item.name not in ("name", "sae", "grid")]
        return {
            member.name: {
                "kind": type(objective.sae).__name__,
                "config": objective.sae.config(),
                "training": {name: getattr(member, name) for name in names},
            }
            for member, objective in zip(self.members, self._objectives, strict=True)
        }

    def _resample(self, acts: Tensor, step: int) -> None:
        """Revive the dead latents of those members whose turn it is."""
        if step == 0 or step >= (1 - self.decay_fraction) * self.trainer.estimated_stepping_batches:
            return
        due = [member.resample_every is not None and step % member.resample_every == 0 for member in self.members]
        if not any(due):
            return
        optimiser: Any = self.optimizers()
        dead = list(self.firing.dead().split(self.objective.widths))
        for index, (objective, now) in enumerate(zip(self._objectives, due, strict=True)):
            if now:
                resample_latents(objective.sae, optimiser.optimizer, dead[index], acts, seed=step)
            else:
                dead[index] = torch.zeros_like(dead[index])
        self.firing.forget(torch.cat(dead))

    def _log_training(self, loss: Tensor) -> None:
        for name, value in self._tally.means().items():
            self.log(f"sae/{name}", value)
        self.log("sae/loss", loss.detach(), prog_bar=True)
        if self.firing.seen >= self.firing.window:
            for name, dead in zip(self.saes, self.firing.dead().split(self.objective.widths), strict=True):
                self.log(f"sae/{name}/dead_fraction", dead.float().mean())
