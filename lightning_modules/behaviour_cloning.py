"""A warm start: behaviour cloning from the shortest-path oracle."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from datamodules.imitation import ImitationBatch, ImitationDataModule
from lightning_modules.rate_schedule import scheduled
from lightning_modules.run_checks import finite_steps, is_logged, refuse_other_architecture
from networks import CustomCNN, TappedAgent, read_weights
from networks.compilation import compile_in_place
from networks.origin import parent
from networks.weights import hash_tensors, load_into


class BehaviourCloning(L.LightningModule):
    """Trains an agent's policy towards the oracle's distribution over actions (`target_distribution`).

    The value head is left as it was: reinforcement learning fits it first (`PPOImpala`, `value_warmup_frames`).

    Args:
        agent: the network to train.
        weights: a saved agent to go on from; null begins afresh.
        learning_rate: Adam's, falling to zero along a cosine over the run.
        compile: compile the inner network in place; without a C++ compiler the run goes on eagerly.

    Raises:
        ValueError: `weights` that are missing, of another architecture, or do not fit.
    """

    def __init__(
        self,
        agent: TappedAgent | None = None,
        weights: str | None = None,
        learning_rate: float = 1e-3,
        compile: bool = True,
    ) -> None:
        super().__init__()
        self.agent = agent if agent is not None else CustomCNN()
        self._parent: dict[str, Any] | None = None
        if weights is not None:
            tensors, metadata = read_weights(weights)
            architecture = metadata.get("architecture", self.agent.architecture)
            refuse_other_architecture(weights, architecture, self.agent, "weights")
            load_into(self.agent, tensors, weights)
            self._parent = parent(hash_tensors(tensors), metadata)
        convert_conv2d_weight_memory_format(self.agent, torch.channels_last)
        _, value = self.agent.heads()  # learns nothing here, which several processes would wait for
        assert isinstance(value, nn.Module)
        for parameter in value.parameters():
            parameter.requires_grad_(False)
        self.learning_rate = learning_rate
        self.compile_agent = compile

    @property
    def _data(self) -> ImitationDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Compile here, after checkpoints' weights have their places."""
        if self.compile_agent and stage == "fit":
            compile_in_place(self.agent, device=self.trainer.strategy.root_device)

    def training_step(self, batch: ImitationBatch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        logits = self.agent(batch.frames).logits
        loss = functional.cross_entropy(logits, batch.targets)
        if is_logged(self.trainer):
            self.log("clone/loss", loss.detach(), prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log what play showed, a NaN loss stops the run."""
        statistics = self._data.statistics
        if not all(torch.isfinite(parameter).all() for parameter in self.agent.parameters()):
            raise ValueError(
                f"the agent's weights are not finite after {statistics.env_steps} frames: "
                "lower model.init_args.learning_rate and go on from the last checkpoint"
            )
        self.log("env_steps", float(statistics.env_steps))
        if statistics.accuracy == statistics.accuracy:
            self.log("clone/accuracy", statistics.accuracy, prog_bar=True)

    def agent_metadata(self) -> dict[str, Any]:
        """What the saved agent's file says of its training."""
        return {
            "environment": self._data.environment.as_dict(),
            "env_steps": self._data.env_steps,
            "training": "behaviour cloning from the shortest-path oracle",
            "warm_started": self._parent is not None,
            **({} if self._parent is None else {"parent": self._parent}),
        }

    def configure_optimizers(self) -> Any:
        """Adam with a cosine over the whole run.

        Raises:
            ValueError: the run has no end.
        """
        learning = [parameter for parameter in self.agent.parameters() if parameter.requires_grad]
        optimiser = torch.optim.Adam(learning, lr=self.learning_rate)
        steps = finite_steps(self.trainer.estimated_stepping_batches)
        return scheduled(optimiser, lambda step: (1 + math.cos(math.pi * min(1.0, step / steps))) / 2)
