"""What two ranks do together; not a test itself. Each writes OUT/rank_K.pt for the test that starts them.

Arguments: the folder OUT, and the agent file to start from.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from callbacks import AgentExport, HeldOutPlay
from datamodules import RolloutDataModule
from datamodules.advantages import RewardNormaliser
from datamodules.ranks import rank
from environments import State, VectorEnvironment
from lightning_modules import PPOImpala
from networks import CustomCNN

SIZES = {"num_environments": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 2, "seed": 3}
FRAMES = SIZES["num_environments"] * SIZES["num_steps"]
WARM = {"value_warmup_frames": FRAMES, "kl_coefficient": 1.0, "kl_frames": 3 * FRAMES}
SLOTS, STEPS, DISCOUNT = 3, 50, 0.9  # of the rewards that the normaliser is tried with


def random_rewards(generator_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(generator_seed)
    rewards = torch.rand(STEPS, SLOTS, generator=generator) * (1 + generator_seed)
    return rewards, torch.rand(STEPS, SLOTS, generator=generator) < 0.1


def with_rewards(observe):
    """A game that pays every step, each frame differently, so that there is something to learn from a few."""

    def observe_and_pay(self):
        reward, frames, first = observe(self)
        return reward + frames[:, ::7, ::7].mean((1, 2, 3)).astype(np.float32) / 255, frames, first

    return observe_and_pay


class First(Callback):
    """The first minibatch, and the gradients that it gave, averaged over ranks and before clipping."""

    def __init__(self) -> None:
        self.batch, self.gradients, self.weights = None, None, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.batch is None:
            self.batch = batch
            self.weights = {name: weight.clone() for name, weight in pl_module.state_dict().items()}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in pl_module.agent.named_parameters()}


class Terminate(Callback):
    """SIGTERM to the second rank alone, amid its first rollout."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 0 and trainer.current_epoch == 0 and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, clone: str, callbacks: list[Callback], ckpt_path: Path | None = None) -> PPOImpala:
    torch.manual_seed(0)
    module = PPOImpala(CustomCNN(), warm_start=clone, **WARM)
    played = HeldOutPlay(2, every_n_epochs=1, num_environments=2, max_steps=3)  # by the first rank; all judge by it
    best = ModelCheckpoint(folder / "best", monitor="held_out/return")
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, gradient_clip_val=0.5, logger=False,
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[*callbacks, played, best, AgentExport(1), ModelCheckpoint(folder, save_last=True, every_n_epochs=2)],
    )  # fmt: skip
    trainer.fit(module, datamodule=RolloutDataModule(**SIZES), ckpt_path=ckpt_path, weights_only=True)
    return module


def main(out: Path, clone: str) -> None:
    VectorEnvironment.observe = with_rewards(VectorEnvironment.observe)
    first = First()
    whole = fit(out / "whole", clone, [first])
    stopped = False
    try:
        fit(out / "part", clone, [Terminate()])
    except SIGTERMException:
        stopped = True
    resumed = fit(out / "part", clone, [], out / "part/last.ckpt")
    data = whole.trainer.datamodule
    result = {
        "stopped": stopped,
        "batch": first.batch._asdict(),
        "gradients": first.gradients,
        "before": first.weights,
        "metrics": {name: float(value) for name, value in whole.trainer.callback_metrics.items()},
        "levels": [State.from_bytes(s).fields["current_level_seed"] for s in data.player.environments.get_states()],
        "advantages": data.rollout.advantages,
        "raw_advantages": data.rollout.returns - data.rollout.values,
    }
    for name, module in (("whole", whole), ("resumed", resumed)):
        result[name] = {
            "weights": module.state_dict(),
            "optimiser": module.trainer.optimizers[0].state_dict(),
            "player": module.trainer.datamodule.player.state_dict(),
        }
    normaliser = RewardNormaliser(SLOTS, DISCOUNT)
    result["scaled"] = [normaliser(*random_rewards(2 * rollout + rank())) for rollout in range(2)]
    torch.save(result, out / f"rank_{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
