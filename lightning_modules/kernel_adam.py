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
        """Whether all that the autoencoder learns are parameters which the kernel knows, in float32."""
        known = kernel_parameters(sae)
        learn = all(one.requires_grad and one.dtype == torch.float32 for one in known)
        return learn and len(list(sae.parameters())) == len(known)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and return what the closure returned."""
        if self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks:
            return self._watched(closure)
        return self._take(closure)

    step.hooked = True  # type: ignore[attr-defined]  # or torch adds a profiler's record, longer than the step itself

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to 0; without a record for the profiler."""
        if not set_to_none:
            super().zero_grad(set_to_none)
            return
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def _take(self, closure: Callable[[], Any] | None = None) -> Any:
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
        averages, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        self._kernel.update(
            self._sae,
            gradients,
            averages,
            squares,
            steps,
            largest_norm=self.largest_norm or 0.0,
            rate=float(group["lr"]),
            betas=group["betas"],
            epsilon=group["eps"],
        )
        return loss

    _watched = torch.optim.Optimizer.profile_hook_step(_take)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, requires_grad=False)
        elif state["step"].dtype != torch.float32:
            state["step"] = state["step"].float()
        return state
