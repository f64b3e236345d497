"""All that is measured of one autoencoder over validation frames, while training and of a saved one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_modules.sae_metrics import (
    Coverage,
    ExplainedVariance,
    Firing,
    Sparsity,
    channel_cosines,
    dictionary_metrics,
    nearest_cosines,
)
from networks import SAEBase


class SAENumbers(NamedTuple):
    """What a validation found.

    Attributes:
        values: of the whole autoencoder, by the names of the `sae/` metrics.
        latents: columns [F], one number a latent.
        channels: columns [C], one number a channel of the tap.
    """

    values: dict[str, Float[Tensor, ""]]
    latents: dict[str, Float[Tensor, " F"]]
    channels: dict[str, Float[Tensor, " C"]]


class SAEValidation(nn.Module):
    """Sums over batches, and over ranks where there are several; `compute` makes numbers of them.

    Args:
        latents: F.
        shape: the tap's shape for one frame, (C, H, W) or (C,).
    """

    def __init__(self, latents: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.variance = ExplainedVariance(shape)
        self.latent_sparsity, self.raw_sparsity = Sparsity(latents), Sparsity(shape[0])
        self.latent_firing = Firing(latents, shape[1:])
        self.coverage = Coverage()

    @torch.no_grad()
    def update(
        self,
        sae: SAEBase,
        acts: Float[Tensor, "B C *HW"],
        inside: Bool[Tensor, "B *HW"] | None,
        levels: Int[Tensor, " B"],
    ) -> None:
        """Add a batch of raw activations of whole frames.

        Args:
            sae: the same one each time.
            inside: mask of positions inside the maze, where there is one.
            levels: level seed of each frame.
        """
        latents = sae.encode(acts)
        self.variance.update(sae.decode(latents).to(acts.dtype), acts)
        self.latent_sparsity.update(latents, inside, sae.decoder_norms())
        self.latent_firing.update(latents)
        self.raw_sparsity.update(acts.abs(), inside)
        self.coverage.update(levels)

    @torch.no_grad()
    def compute(self, sae: SAEBase) -> SAENumbers:
        """What everything seen says of the autoencoder; taps and games without a maze have no `..._inside`."""
        variance, raw = self.variance.compute(), self.raw_sparsity.compute()
        directions, firing = sae.directions().flatten(1), self.latent_firing.compute()
        values = {**variance, **self.latent_sparsity.compute(), "l0_raw": raw["l0"], "l0_raw_inside": raw["l0_inside"]}
        values |= dictionary_metrics(directions, sae.decoder_norms(), firing)
        values |= self.coverage.compute()
        return SAENumbers(
            {name: value for name, value in values.items() if not (name.endswith("_inside") and value.isnan())},
            firing
            | {
                "direction_length": sae.decoder_norms(),
                "nearest_cosine": nearest_cosines(directions),
                "channel_cosine": channel_cosines(directions),
            },
            {"explained_variance": self.variance.by_channel},
        )

    def reset(self) -> None:
        """Forget everything seen."""
        for metric in (self.variance, self.latent_sparsity, self.latent_firing, self.raw_sparsity, self.coverage):
            metric.reset()
