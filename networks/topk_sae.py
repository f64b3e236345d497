"""TopK: each input keeps its k largest latents."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from networks.sae_base import AnyProgress, RowTerms, SAEBase


def keep_top(values: Float[Tensor, "B F *HW"], k: int) -> Float[Tensor, "B F *HW"]:
    """The k largest of the F values at each position, 0 elsewhere; exactly k also where values are equal.

    For 128 latents `topk` and `scatter` cost about as much on a CPU as `kthvalue` and a mask, and a tenth of sorting.
    """
    rows = values.movedim(1, -1)
    largest = rows.topk(k, sorted=False)
    return torch.zeros_like(rows).scatter(-1, largest.indices, largest.values).movedim(-1, 1)


class TopKSAE(SAEBase):
    """Latents are the k largest pre-activations of an input, cut off below 0 (Gao et al. 2024, "Scaling and evaluating
    sparse autoencoders"); an input is one position. There is no penalty. Latents that are
    never among the largest learn nothing, unless by AuxK (`auxk_coefficient` of `lightning_modules.ConvSAE`).

    Args:
        in_channels, expansion, kernel_size: see `SAEBase`.
        k: latents that an input may use.
        unit_norm_decoder: hold the directions at length 1 while training, as the paper does.

    Raises:
        ValueError: a k below 1 or above the number of latents.
    """

    def __init__(
        self, in_channels: int, expansion: int = 4, kernel_size: int = 1, k: int = 8, unit_norm_decoder: bool = True
    ) -> None:
        super().__init__(in_channels, expansion, kernel_size, unit_norm_decoder)
        if not 1 <= k <= self.num_latents:
            raise ValueError(f"k is {k}: choose 1 to {self.num_latents}, the number of latents")
        self.k = k

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().config() | {"k": self.k, "unit_norm_decoder": self.unit_norm_decoder}

    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """The k largest that are above 0."""
        return keep_top(pre_activations.relu(), self.k)

    def row_terms(self, progress: AnyProgress) -> RowTerms | None:
        """The k largest, without a penalty."""
        return RowTerms(self.k)
