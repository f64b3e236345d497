"""A learning rate that is a function of the step."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class RateSchedule(LambdaLR):
    """Configured rates times a height in 0 to 1 for the step.

    A checkpoint says at which step the run is, and nothing else: the rates and weight decays are those configured now,
    and so is the length of the run that the height depends on. (PyTorch's own schedules bring the rates of the first
    run back, and its cosine the length, behind which it rises again; its optimisers bring the weight decays back.)

    Args:
        optimiser: of Adam's kind, with the rates at height 1.
        height: of a step, from 0.
    """

    def __init__(self, optimiser: Optimizer, height: Callable[[int], float]) -> None:
        super().__init__(optimiser, height)
        self._weight_decays = [group["weight_decay"] for group in optimiser.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a step; the optimiser's own state is loaded before."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, rate, height in zip(self.optimizer.param_groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["initial_lr"], group["lr"] = rate, rate * height(self.last_epoch)
        for group, decay in zip(self.optimizer.param_groups, self._weight_decays, strict=True):
            group["weight_decay"] = decay
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def scheduled(optimiser: Optimizer, height: Callable[[int], float]) -> dict[str, Any]:
    """What `configure_optimizers` returns for a rate that changes with every step.

    Args:
        optimiser: with the rates at height 1.
        height: of a step, from 0.
    """
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": RateSchedule(optimiser, height), "interval": "step"}}
