"""Trains a decision transformer: which action comes next in recorded trajectories, given the return that followed?"""

import math
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

import networks
from datamodules import TrajectoryBatch
from lightning_modules.rate_schedule import scheduled
from lightning_modules.run_checks import finite_steps, is_logged
from networks import GAMMA, load_agent
from networks.compilation import compile_in_place

_NEVER_DECAYED = ("embed_action", "embed_return", "embed_time")


class DecisionTransformer(L.LightningModule):
    """Minimises the cross-entropy of the actions taken, over the real steps of windows.

    Args:
        agent: the network to train.
        encoder_weights: a saved agent whose layers the encoder begins with; null begins afresh.
        learning_rate: AdamW's at its height; it rises over `warmup_steps` and falls to 0 along a cosine.
        warmup_steps: optimiser steps until it is reached.
        weight_decay: of matrices and kernels; biases, norms and embeddings are not decayed.
        compile: compile the inner network in place; without a C++ compiler the run goes on eagerly.

    Raises:
        ValueError: an argument out of its range, encoder weights that are missing or do not fit.
    """

    def __init__(
        self,
        agent: networks.DecisionTransformer | None = None,
        encoder_weights: str | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.1,
        compile: bool = True,
    ) -> None:
        super().__init__()
        if learning_rate <= 0 or warmup_steps < 0 or weight_decay < 0:
            raise ValueError(
                f"learning_rate {learning_rate} must be above 0, warmup_steps {warmup_steps} and weight_decay "
                f"{weight_decay} at least 0"
            )
        self.agent = agent if agent is not None else networks.DecisionTransformer()
        self.encoder_hash = ""
        if encoder_weights is not None:
            taken = load_agent(encoder_weights)
            self.agent.take_encoder(taken)
            self.encoder_hash = taken.weights_hash
        convert_conv2d_weight_memory_format(self.agent, torch.channels_last)
        self.encoder_weights = encoder_weights
        self.learning_rate, self.warmup_steps, self.weight_decay = learning_rate, warmup_steps, weight_decay
        self.compile_agent = compile

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def check_data(self, data: Any) -> None:
        """Check that windows and network go together.

        Raises:
            ValueError: windows longer than the context, features of another tap or agent than the encoder's, or returns
                of another discount than what is asked for while playing.
        """
        if data.context > self.agent.context:
            raise ValueError(
                f"data.init_args.context {data.context} is more than the network's {self.agent.context}: "
                "set both to the same"
            )
        if data.discount != GAMMA:
            raise ValueError(
                f"data.init_args.discount {data.discount}: a decision transformer plays on as if it were {GAMMA}: "
                "set it to that"
            )
        given, encoder = data.features, self.agent.encoder
        if given is None and not data.frames:
            raise ValueError("the windows hold neither frames nor features: set data.init_args.frames to true")
        if given is not None:
            made_by = data.agents[given.agent].weights_hash
            if (given.tap, made_by) != (encoder.tap, self.encoder_hash) or not encoder.frozen:
                raise ValueError(
                    f"data.init_args.features are {given.tap} of {given.agent}, frozen: set the agent's encoder_tap "
                    "and frozen_encoder, and model.init_args.encoder_weights, to the same"
                )

    def setup(self, stage: str) -> None:
        """Check the data on every rank; compile here, after checkpoints' weights have their places."""
        self.check_data(self._data)
        if self.compile_agent and stage == "fit":
            compile_in_place(self.agent, device=self.trainer.strategy.root_device)

    def training_step(self, batch: TrajectoryBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss, right, count = masked_loss(self._logits(batch), batch)
        if is_logged(self.trainer):
            self.log("dt/train_loss", loss.detach() / count, prog_bar=True)
            self.log("dt/train_action_accuracy", right / count, prog_bar=True)
        return loss / count

    def validation_step(self, batch: TrajectoryBatch, batch_idx: int) -> None:
        """Loss and accuracy over all validation steps."""
        loss, right, count = masked_loss(self._logits(batch), batch)
        weight = int(count)
        self.log("dt/loss", loss / count, batch_size=weight, sync_dist=True)
        self.log("dt/action_accuracy", right / count, batch_size=weight, sync_dist=True)

    def _logits(self, batch: TrajectoryBatch) -> Float[Tensor, "B T A"]:
        features = None if batch.features is None else batch.features.flatten(2)
        logits = self.agent(batch.window, features=features).logits
        assert logits is not None
        return logits

    def on_train_epoch_end(self) -> None:
        """A NaN loss stops the run."""
        if not all(torch.isfinite(parameter).all() for parameter in self.agent.parameters()):
            raise ValueError(
                f"the weights are not finite after {self.trainer.global_step} steps: lower "
                "model.init_args.learning_rate and go on from the last checkpoint"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note whose layers the encoder began with."""
        checkpoint["encoder_hash"] = self.encoder_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint with another encoder, whose weights would replace this one's.

        Raises:
            ValueError: says what to do.
        """
        if checkpoint.get("encoder_hash", self.encoder_hash) != self.encoder_hash:
            raise ValueError(
                "ckpt_path: this checkpoint's encoder began as another agent: set model.init_args.encoder_weights to "
                "that agent, or start without ckpt_path"
            )

    def agent_metadata(self) -> dict[str, Any]:
        """What the saved network's file says of its training."""
        return {
            "environment": self._data.environment.as_dict(),
            "env_steps": sum(counts.frames for counts in self._data.counts("train")),
            "training": "cloning of recorded trajectories, given the return that followed",
            "encoder_weights": self.encoder_weights,
            "encoder_hash": self.encoder_hash,
            "steps": self.trainer.global_step,
        }

    def configure_optimizers(self) -> Any:
        """AdamW (not fused: Lightning could not clip its gradients) with a warm-up and a cosine over the whole run.

        Raises:
            ValueError: the run has no end.
        """
        steps = finite_steps(self.trainer.estimated_stepping_batches)
        optimiser = torch.optim.AdamW(
            parameter_groups(self.agent, self.weight_decay), lr=self.learning_rate, betas=(0.9, 0.95), foreach=True
        )

        def height(step: int) -> float:
            risen = min(1.0, (step + 1) / max(1, self.warmup_steps))
            return risen * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2

        return scheduled(optimiser, height)


def masked_loss(logits: Float[Tensor, "B T A"], batch: TrajectoryBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the real steps: cross-entropy in nats, steps whose likeliest action was taken, and the steps."""
    actions, mask = batch.window.actions, batch.window.mask
    losses = functional.cross_entropy(
        logits.flatten(0, 1), actions.masked_fill(~mask, 0).flatten(), reduction="none"
    ).view_as(actions)
    right = (logits.argmax(-1) == actions) & mask
    return (losses * mask).sum(), right.sum(), mask.sum()


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters: matrices and kernels with decay; biases, norms and embeddings without."""
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim > 1 and not name.startswith(_NEVER_DECAYED)

    return [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
