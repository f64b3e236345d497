"""BatchTopK: a batch keeps its largest latents, k an input on average; a threshold takes over when it is used."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from networks.sae_base import SAEBase

_MEMORY = 50  # batches: short beside the end of a run, when the learning rate falls, and long beside the noise


class BatchTopKSAE(SAEBase):
    """While training, the latents of a batch are its k x (number of inputs) largest pre-activations above 0, so that
    inputs share a budget of k each (Bussmann et al. 2024, "BatchTopK sparse autoencoders"). An input is one
    position: of maps [B, F, H, W] the batch keeps k x B x H x W.

    In evaluation mode an input's latents must not depend on what else is in the batch: those above `threshold` are
    kept, the mean of the smallest latent kept in each of the last training batches (a running mean over
    about 50 batches). In distributed training each rank keeps its own batch's largest, and all use the first rank's
    threshold, because DistributedDataParallel hands its buffers on.

    Args:
        in_channels, expansion, kernel_size: see `SAEBase`.
        k: latents that an input may use, on average; need not be a whole number.
        unit_norm_decoder: hold the directions at length 1 while training.

    Attributes:
        threshold: in normalised units; 0 for a fresh one.
        observed: batches that it was estimated from.

    Raises:
        ValueError: a k that is not above 0, or above the number of latents.
    """

    threshold: Tensor
    observed: Tensor

    def __init__(
        self, in_channels: int, expansion: int = 4, kernel_size: int = 1, k: float = 8, unit_norm_decoder: bool = True
    ) -> None:
        super().__init__(in_channels, expansion, kernel_size, unit_norm_decoder)
        if not 0 < k <= self.num_latents:
            raise ValueError(f"k is {k}: choose above 0 and at most {self.num_latents}, the number of latents")
        self.k = k
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("observed", torch.zeros((), dtype=torch.int64))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().config() | {"k": self.k, "unit_norm_decoder": self.unit_norm_decoder}

    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """The batch's largest while training, those above the threshold otherwise."""
        latents = pre_activations.relu()
        if not self.training:
            return torch.where(latents > self.threshold, latents, 0)
        budget = max(1, round(self.k * (latents.numel() // self.num_latents)))
        # without order it is a partial sort; the threshold itself needs no gradient
        smallest = latents.detach().flatten().topk(budget, sorted=False).values.amin()
        return torch.where(latents >= smallest, latents, 0)

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, "B F *HW"]) -> None:
        """Move the threshold towards this batch's smallest latent above 0; a batch without any says nothing."""
        smallest = torch.where(latents > 0, latents, torch.inf).amin()
        known = smallest.isfinite()
        self.observed += known
        step = (smallest - self.threshold) / self.observed.clamp(1, _MEMORY)
        self.threshold += torch.where(known, step, 0)
