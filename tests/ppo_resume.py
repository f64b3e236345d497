"""What a resumed run of PPO is tried with; not a test itself.

`Between` does between two rollouts what callbacks may do, and draws from the global generators, which only a test may;
a file `signal` in the working directory, "EPOCH NUMBER", makes it send the process that signal amid a rollout, once.
"""

import os
import random
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback

from environments import EnvironmentSettings, VectorEnvironment


class Between(Callback):
    def __init__(self):
        self.drawn = []

    def on_train_epoch_end(self, trainer, pl_module):
        """A validation on an environment of its own, and random numbers."""
        env = VectorEnvironment(EnvironmentSettings(start_level=0, num_levels=50), 4, seed=trainer.current_epoch)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for _ in range(2):
                frames = torch.from_numpy(env.observe()[1])
                env.act(pl_module.agent(frames).logits.argmax(-1).numpy())
        env.close()
        self.drawn.append([float(torch.rand(())), float(np.random.rand()), random.random()])  # noqa: NPY002

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        wanted = Path("signal")
        if batch_idx == 1 and wanted.exists():
            epoch, number = map(int, wanted.read_text().split())
            if trainer.current_epoch == epoch:
                wanted.unlink()
                os.kill(os.getpid(), number)

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]
