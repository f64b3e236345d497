"""Matryoshka BatchTopK: the first latents must do on their own, the later ones add detail."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from networks.batch_topk_sae import BatchTopKSAE
from networks.sae_base import Progress
from networks.sae_losses import reconstruction_loss


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK, trained to reconstruct from each of several nested prefixes of its latents, so that general latents
    come first and are not absorbed by special ones (Bussmann et al. 2025, "Learning multi-level features with
    Matryoshka sparse autoencoders"). The reconstruction loss is the mean over prefixes, where the paper
    has the sum, which is on the scale of the other kinds' and the same to Adam.

    Args:
        in_channels, expansion, kernel_size, k, unit_norm_decoder: see `BatchTopKSAE`.
        prefixes: rising shares of the latents, below 1; all latents are the last prefix without being named.

    Raises:
        ValueError: as BatchTopKSAE, or prefixes that do not rise, or hold no latent.
    """

    def __init__(
        self,
        in_channels: int,
        expansion: int = 4,
        kernel_size: int = 1,
        k: float = 8,
        prefixes: Sequence[float] = (0.0625, 0.125, 0.25, 0.5),
        unit_norm_decoder: bool = True,
    ) -> None:
        super().__init__(in_channels, expansion, kernel_size, k, unit_norm_decoder)
        self.prefixes = [float(share) for share in prefixes]
        self.ends = [round(share * self.num_latents) for share in self.prefixes] + [self.num_latents]
        if any(first >= second for first, second in pairwise([0, *self.ends])):
            raise ValueError(
                f"prefixes {self.prefixes} end at latents {self.ends}: choose shares that rise from above 0 "
                "to below 1, each with one more latent at least"
            )

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().config() | {"prefixes": self.prefixes}

    def losses(
        self,
        pre_activations: Float[Tensor, "B F *HW"],
        latents: Float[Tensor, "B F *HW"],
        errors: Float[Tensor, "B C *HW"],
        progress: Progress,
    ) -> dict[str, Float[Tensor, ""]]:
        """The mean reconstruction loss of all prefixes."""
        terms = [reconstruction_loss(errors)]
        for start, end in reversed(list(pairwise(self.ends))):  # from all latents backwards, one block less each time
            errors = errors - self.convolve(latents[:, start:end], self.decoder_weight[:, start:end])
            terms.append(reconstruction_loss(errors))
        return {"reconstruction": torch.stack(terms).mean()}
