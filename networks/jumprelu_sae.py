"""JumpReLU: each latent has a learnt threshold, and the penalty counts latents."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from networks.sae_base import Progress
from networks.sae_losses import reconstruction_loss
from networks.sae_penalised import PenalisedSAE


class JumpReLUSAE(PenalisedSAE):
    """A latent is its pre-activation where that is above the latent's threshold, else 0; the penalty is L0, the number
    of latents above theirs (Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU
    sparse autoencoders").

    Neither has a gradient with respect to the threshold t; the straight-through ones of the paper are
    used: with w = 1 / bandwidth for pre-activations within half a bandwidth of t and 0 elsewhere, -t w for the latent
    and -w for the count.

    Args:
        in_channels, expansion, kernel_size: see `SAEBase`.
        sparsity_coefficient: weight of the penalty, in squared normalised units a latent.
        sparsity_warmup_steps: steps until the penalty has its full weight.
        bandwidth: in normalised units.
        initial_threshold: in normalised units.
        unit_norm_decoder: hold the directions at length 1 while training, so that the bandwidth keeps its meaning.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        expansion: int = 4,
        kernel_size: int = 1,
        sparsity_coefficient: float = 0.1,
        sparsity_warmup_steps: int = 300,
        bandwidth: float = 0.1,
        initial_threshold: float = 0.1,
        unit_norm_decoder: bool = True,
    ) -> None:
        super().__init__(
            in_channels, expansion, kernel_size, sparsity_coefficient, sparsity_warmup_steps, unit_norm_decoder
        )
        for name, value in (("bandwidth", bandwidth), ("initial_threshold", initial_threshold)):
            if value <= 0:
                raise ValueError(f"{name} is {value}: it must be above 0")
        self.bandwidth, self.initial_threshold = bandwidth, initial_threshold
        self.log_threshold = nn.Parameter(torch.full((self.num_latents,), math.log(initial_threshold)))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().config() | {"bandwidth": self.bandwidth, "initial_threshold": self.initial_threshold}

    def further_parameters(self) -> dict[nn.Parameter, float]:
        """The logarithms of the thresholds."""
        return {self.log_threshold: math.log(self.initial_threshold)}

    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """What is above the threshold."""
        threshold, is_above, window = self._compare(pre_activations)
        # 0 in value: it only carries the threshold's gradient
        gradient = window * threshold.detach() * (threshold - threshold.detach())
        return pre_activations * is_above - gradient

    def losses(
        self,
        pre_activations: Float[Tensor, "B F *HW"],
        latents: Float[Tensor, "B F *HW"],
        errors: Float[Tensor, "B C *HW"],
        progress: Progress,
    ) -> dict[str, Float[Tensor, ""]]:
        """Reconstruction and the weighted number of latents above their thresholds."""
        threshold, is_above, window = self._compare(pre_activations)
        count = (is_above - window * (threshold - threshold.detach())).mean() * self.num_latents
        return {"reconstruction": reconstruction_loss(errors), "sparsity": self.penalty_weight(progress) * count}

    def _compare(self, pre_activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The thresholds [1 F 1 1], which pre-activations are above them, and the straight-through window."""
        threshold = self.log_threshold.exp().view(1, -1, *(1 for _ in range(pre_activations.ndim - 2)))
        distance = (pre_activations - threshold).detach()
        is_above = (distance > 0).to(distance.dtype)
        window = (distance.abs() < self.bandwidth / 2).to(distance.dtype) / self.bandwidth
        return threshold, is_above, window
