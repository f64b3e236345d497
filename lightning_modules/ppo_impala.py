"""Proximal policy optimisation with procgen's standard recipe, from scratch or from a cloned agent."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from datamodules.ranks import gather, world_size
from datamodules.rollout_batch import RolloutBatch
from datamodules.rollouts import FIXED_SETTINGS, RolloutDataModule
from environments import NUM_ACTIONS
from lightning_modules.ppo_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    policy_divergence,
    policy_entropy,
)
from lightning_modules.rollout_boundary import SigtermFlag, WholeRollouts, check_boundaries
from lightning_modules.run_checks import refuse_other_architecture, tell_changed_settings
from networks import AgentOutput, TappedAgent, load_agent, log_probabilities
from networks.compilation import compile_in_place
from networks.origin import parent
from networks.weights import load_into

# What a checkpoint's weights are bound to; the agent and the clone it is held to come from there, not from a file.
_FIXED_SETTINGS = ("agent", "warm_start_weights", "held_to_warm_start")
_METRICS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "reference_kl")


class PPOImpala(LightningModule):
    """PPO (Schulman et al. 2017) as the procgen papers run it: one rollout an epoch, one minibatch a step.

    With `warm_start` the agent begins as a saved one, cloned from the oracle, say. A clone's value head knows nothing
    and its mistakes are of a kind that fills rollouts with time-outs, so that plain PPO destroys it. Therefore, in
    environment frames: for the first `value_warmup_frames` only the value head learns, from zero, on the play of the
    clone; from there on a penalty of KL(clone || agent), fading linearly over `kl_frames`, holds the agent near it.
    `RolloutDataModule.time_limit` keeps stuck episodes short meanwhile.

    `callbacks.AgentExport` writes the agent for `load_agent`. A run goes on from a checkpoint bit for bit. Whatever
    ends training, SIGTERM and `max_time` too, waits for the end of the rollout, which is then saved. Settings may
    differ when it goes on, except for those that what is saved is bound to; in distributed training gradients, metrics
    and the stop are those of all ranks.

    Args:
        agent: the network to train.
        learning_rate: Adam's.
        anneal_frames: let the learning rate fall linearly, to a hundredth at so many environment frames; None keeps it.
        clip: epsilon of the clipped policy loss.
        value_clip: epsilon of the clipped value loss, in units of scaled reward; None leaves it unclipped.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus.
        warm_start: file of the agent to begin as.
        value_warmup_frames: environment frames for which only the value head learns; needs `warm_start`.
        value_warmup_learning_rate: Adam's meanwhile.
        kl_coefficient: weight of the KL penalty at its start; needs `warm_start`.
        kl_frames: environment frames over which the penalty fades to nothing.
        compile: compile the inner network in place; without a C++ compiler the run goes on eagerly.

    Raises:
        ValueError: a number too small, warm-start arguments without a warm start, a KL penalty that never ends.
    """

    def __init__(
        self,
        agent: TappedAgent,
        learning_rate: float = 5e-4,
        anneal_frames: int | None = None,
        clip: float = 0.2,
        value_clip: float | None = 0.2,
        value_coefficient: float = 0.5,
        entropy_coefficient: float = 0.01,
        warm_start: str | None = None,
        value_warmup_frames: int = 0,
        value_warmup_learning_rate: float = 1e-3,
        kl_coefficient: float = 0.0,
        kl_frames: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        positive = {"learning_rate": learning_rate, "anneal_frames": anneal_frames, "clip": clip}
        positive |= {"value_clip": value_clip, "value_warmup_learning_rate": value_warmup_learning_rate}
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0")
        weights = {"value_coefficient": value_coefficient, "entropy_coefficient": entropy_coefficient}
        weights |= {
            "kl_coefficient": kl_coefficient,
            "kl_frames": kl_frames,
            "value_warmup_frames": value_warmup_frames,
        }
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}: it must be at least 0")
        if warm_start is None and (value_warmup_frames or kl_coefficient or kl_frames):
            raise ValueError(
                "value_warmup_frames, kl_coefficient and kl_frames are for an agent that can play already: "
                "set warm_start to its file, or leave them 0"
            )
        if bool(kl_coefficient) != bool(kl_frames):
            raise ValueError(
                f"kl_coefficient is {kl_coefficient} and kl_frames is {kl_frames}: set both, or neither for no penalty"
            )
        self.save_hyperparameters(ignore=["agent", "compile"])
        self.agent = agent.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.reference: TappedAgent | None = None
        self.learning_rate = learning_rate
        self.anneal_frames = anneal_frames
        self.clip = clip
        self.value_clip = math.inf if value_clip is None else value_clip
        self.value_coefficient = value_coefficient
        self.entropy_coefficient = entropy_coefficient
        self.warm_start = warm_start
        self.value_warmup_frames = value_warmup_frames
        self.value_warmup_learning_rate = value_warmup_learning_rate
        self.kl_coefficient = kl_coefficient
        self.kl_frames = kl_frames
        self.compile_agent = compile
        self._compiled = False
        self._parent: dict[str, Any] | None = None
        self._sigterm = SigtermFlag()
        self._whole_rollouts = WholeRollouts()
        self._sums: Tensor | None = None
        self._count = 0
        self._drift: Tensor | None = None

    @property
    def rollouts(self) -> RolloutDataModule:
        """The data module, which plays with this module and counts environment frames."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, RolloutDataModule):
            raise ValueError("PPOImpala learns from its own play: set data.class_path to datamodules.RolloutDataModule")
        return data

    def setup(self, stage: str) -> None:
        """Load the warm start and compile; before a checkpoint's weights are put in their places."""
        if stage != "fit":
            return
        _ = self.rollouts
        self.agent.check_actions(NUM_ACTIONS)
        check_boundaries(self.trainer, self.rollouts.num_epochs * self.rollouts.num_minibatches)
        if self.warm_start is not None:
            clone = load_agent(self.warm_start)
            self._parent = parent(clone.weights_hash, clone.metadata)
            refuse_other_architecture(self.warm_start, clone.architecture, self.agent, "warm_start")
            load_into(self.agent, clone.state_dict(), self.warm_start)
            if self.value_warmup_frames:  # an untrained head's guesses would have to be unlearnt first
                for parameter in self.agent.heads()[1].parameters():
                    nn.init.zeros_(parameter)
            if self.kl_coefficient:
                self.reference = clone.train().requires_grad_(False)
        if self.compile_agent and not self._compiled:
            device = self.trainer.strategy.root_device
            self._compiled = compile_in_place(self.agent, device=device)
            if self.reference is not None:
                compile_in_place(self.reference, device=device)

    def forward(self, frames: UInt8[Tensor, "B 64 64 3"]) -> AgentOutput:
        """The agent's logits and values."""
        return self.agent(frames)

    def reference_logits(self, frames: UInt8[Tensor, "B 64 64 3"]) -> Float[Tensor, "B A"] | None:
        """Logits of the frozen clone while the agent is held to it, else None."""
        if self.reference is None or not self.kl_weight():
            return None
        return self.reference(frames).logits

    def kl_weight(self) -> float:
        """The KL penalty's weight now: whole while the value warms up, then falling to 0 over `kl_frames`."""
        if not self.kl_frames:
            return 0.0
        passed = (self.rollouts.env_steps - self.value_warmup_frames) / self.kl_frames
        return self.kl_coefficient * min(1.0, max(0.0, 1.0 - passed))

    def value_warms_up(self) -> bool:
        """Whether the current rollout still belongs to the value head alone."""
        return self.rollouts.env_steps <= self.value_warmup_frames

    def on_train_start(self) -> None:
        """Listen for SIGTERM; let all that draws random numbers go on where a checkpoint left them."""
        self._sigterm.listen(self.trainer)
        self.rollouts.restore_global_generators()

    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        """Set the learning rate, which depends on the environment frames played."""
        rate = self.learning_rate
        if self.anneal_frames is not None:
            rate *= max(0.01, 1 - self.rollouts.env_steps / self.anneal_frames)
        if self.value_warms_up():
            rate = self.value_warmup_learning_rate
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """The loss of one minibatch."""
        output = self.agent(batch.frames)
        assert output.logits is not None
        assert output.value is not None
        log_probs = log_probabilities(output.logits, batch.actions)
        if batch_idx == 0:  # nothing is learnt yet: what differs from play is rounding
            self._drift = (log_probs.detach() - batch.log_probs).expm1().abs().max()
        policy = clipped_policy_loss(log_probs, batch.log_probs, batch.advantages, self.clip)
        # an untrained value head has far to go: clipping would let it move by epsilon a rollout
        value_clip = math.inf if self.value_warms_up() else self.value_clip
        value_loss = clipped_value_loss(output.value, batch.values, batch.returns, value_clip)
        entropy = policy_entropy(output.logits)
        reference_kl = torch.zeros_like(entropy)
        if batch.reference_logits is not None:
            reference_kl = policy_divergence(batch.reference_logits, output.logits)
        self._accumulate(policy.loss, value_loss, entropy, policy.approx_kl, policy.clip_fraction, reference_kl)
        loss = policy.loss + self.value_coefficient * value_loss - self.entropy_coefficient * entropy
        if batch.reference_logits is not None:
            loss = loss + self.kl_weight() * reference_kl
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """While the value warms up, leave out all gradients but its head's, before they are clipped.

        Freezing the others instead would compile anew, and break distributed training, which waits for all gradients.
        """
        if self.value_warms_up():
            head = set(self.agent.heads()[1].parameters())
            for parameter in self.agent.parameters():
                if parameter not in head:
                    parameter.grad = None

    def _accumulate(self, *metrics: Tensor) -> None:
        # On the device, once a rollout to the logger: a log call a step costs a millisecond, and .item() a sync.
        summed = torch.stack([metric.detach() for metric in metrics])
        self._sums = summed if self._sums is None else self._sums + summed
        self._count += 1

    def on_train_batch_end(self, outputs: Any, batch: RolloutBatch, batch_idx: int) -> None:
        """Stop on NaN, once a rollout and before any callback saves what the rollout has made of the agent.

        Raises:
            ValueError: a loss or a weight is not finite.
        """
        self._whole_rollouts.put_off_stop(self.trainer)
        if not self.trainer.is_last_batch and self.trainer.global_step != self.trainer.max_steps:
            return
        broken = [f"ppo/{name}" for name, mean in self._means().items() if not math.isfinite(mean)]
        broken = broken or [name for name, weight in self.agent.named_parameters() if not weight.isfinite().all()]
        if broken:
            raise ValueError(
                f"not finite after {self.rollouts.env_steps} environment frames: {', '.join(broken)}. "
                "The last checkpoint is from before; lower learning_rate and go on from it"
            )

    def _means(self) -> dict[str, float]:
        """Of this rollout's minibatches so far, over all ranks."""
        assert self._sums is not None
        return dict(zip(_METRICS, (gather(self._sums).mean(0) / self._count).tolist(), strict=True))

    def on_train_epoch_end(self) -> None:
        """Log the rollout against environment frames, and stop if asked to; whatever ends training, this is saved."""
        if self._sums is not None:  # else resumed at the very end of an epoch
            self._log_rollout()
        self._whole_rollouts.save_last(self.trainer)
        self._sigterm.stop(self.trainer, self.device)

    def _log_rollout(self) -> None:
        means = self._means()
        self._sums, self._count = None, 0
        frames, rollout = self.rollouts.env_steps, self.rollouts.rollout
        assert rollout is not None
        if self.reference is None:
            del means["reference_kl"]
        metrics = {f"ppo/{name}": mean for name, mean in means.items()}
        if self._drift is not None:
            metrics["ppo/ratio_drift"] = gather(self._drift).max().item()
        values, returns = gather(rollout.values).flatten(), gather(rollout.returns).flatten()
        metrics["ppo/explained_variance"] = explained_variance(values, returns).item()
        shown = self.rollouts.tally.metrics()
        # the same on all ranks already; Lightning asks to be told to see to it
        self.log_dict({**metrics, "env_steps": float(frames)}, logger=False, sync_dist=world_size() > 1)
        self.log_dict(shown, prog_bar=True, logger=False, sync_dist=world_size() > 1)
        for logger in self.loggers:
            logger.log_metrics({**metrics, **shown, "env_steps": frames}, step=frames)

    def settings(self) -> dict[str, Any]:
        """What is configured here and in the trainer, by name; a checkpoint says it of its training."""
        given = {name: value for name, value in self.hparams.items() if not name.startswith("_")}
        return {
            **given,
            "agent": {"class": self.agent.architecture, **self.agent.config()},
            "warm_start_weights": None if self._parent is None else self._parent["hash"],
            "held_to_warm_start": bool(self.kl_coefficient),
            "precision": self.trainer.precision,
            "gradient_clip_val": self.trainer.gradient_clip_val,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say under which settings the checkpoint was made."""
        checkpoint["settings"] = self.settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before a run goes on, say what is configured otherwise now.

        Raises:
            ValueError: settings differ that what is saved is bound to, or the checkpoint is none of this training.
        """
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        data = checkpoint.get(type(self.rollouts).__qualname__)
        if data is None or "settings" not in checkpoint:
            raise ValueError(
                "the checkpoint has no environments to go on with, so it is of another kind of training: "
                "to begin from an agent's weights set model.init_args.warm_start to its .safetensors file"
            )
        here = {**self.rollouts.settings(), **self.settings()}
        known = {"warm_start_weights": here["warm_start_weights"]}  # which earlier checkpoints do not say
        there = {**known, **data["settings"], **checkpoint["settings"]}
        tell_changed_settings(there, here, (*FIXED_SETTINGS, *_FIXED_SETTINGS))

    def agent_metadata(self) -> dict[str, Any]:
        """What the saved agent's file says of its training."""
        only_value = "value head alone, fitted to the warm start's own play"
        return {
            "environment": self.rollouts.environment.as_dict(),
            "env_steps": self.rollouts.env_steps,
            "training": only_value if self.value_warms_up() else "PPO",
            "warm_started": self.warm_start is not None,
            **({} if self._parent is None else {"parent": self._parent}),
        }

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the epsilon of baselines' PPO2; gradients are clipped by the trainer."""
        return torch.optim.Adam(self.agent.parameters(), lr=self.learning_rate, eps=1e-5)
