"""Adam as one compiled call a step, for autoencoders that `SAEKernel` trains."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_modules.sae_kernel import SAEKernel, kernel_parameters
from networks import SAEBase


class KernelAdam(torch.optim.Adam):
    """Adam that also shrinks long gradients and holds directions at length 1 where the kind wants that; its state is
    `torch.optim.Adam`'s, so that either goes on from the other's checkpoint.

    For a small autoencoder torch's own, with `clip_grad_norm_`, `project_decoder_gradient` and `normalise_decoder`,
    takes as long as a thousand inputs.

    Args:
        kernel: made for the autoencoder.
        sae: whose parameters are trained; `takes` it.
        lr: learning rate.

    Attributes:
        largest_norm: gradients that are longer all together are shrunk to this; None for no limit.
    """

    def __init__(self, kernel: SAEKernel, sae: SAEBase, lr: float) -> None:
        super().__init__(sae.parameters(), lr=lr, fused=True)
        self._kernel, self._sae = kernel, sae
        self.largest_norm: float | None = None

    @staticmethod
    def takes(sae: SAEBase) -> bool:
        """Whether all that the autoencoder learns are parameters which the kernel knows."""
        known = kernel_parameters(sae)
        return len(list(sae.parameters())) == len(known) and all(one.requires_grad for one in known)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and return what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        parameters = kernel_parameters(self._sae)
        gradients = [one.grad.contiguous() for one in parameters if one.grad is not None]
        if len(gradients) < len(parameters):
            return loss
        states = [self._state_of(parameter) for parameter in parameters]
        torch._foreach_add_([state["step"] for state in states], 1)
        self._kernel.update(
            self._sae,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            self.largest_norm or 0.0,
            rate=float(group["lr"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            step=float(states[0]["step"]),
        )
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state
