"""What the kinds share whose latents are kept few by a penalty."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from networks.sae_base import AnyProgress, SAEBase


class PenalisedSAE(SAEBase):
    """An autoencoder trained with a penalty whose weight rises from 0 at the start; see `SAEBase` for the rest.

    Args:
        sparsity_coefficient: weight of the penalty.
        sparsity_warmup_steps: steps until the penalty has its full weight.

    Raises:
        ValueError: an argument below 0.
    """

    def __init__(
        self,
        in_channels: int,
        expansion: int,
        kernel_size: int,
        sparsity_coefficient: float,
        sparsity_warmup_steps: int,
        unit_norm_decoder: bool,
    ) -> None:
        super().__init__(in_channels, expansion, kernel_size, unit_norm_decoder)
        for name, value in (
            ("sparsity_coefficient", sparsity_coefficient),
            ("sparsity_warmup_steps", sparsity_warmup_steps),
        ):
            if value < 0:
                raise ValueError(f"{name} is {value}: it cannot be below 0")
        self.sparsity_coefficient, self.sparsity_warmup_steps = sparsity_coefficient, sparsity_warmup_steps

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().config() | {
            "sparsity_coefficient": self.sparsity_coefficient,
            "sparsity_warmup_steps": self.sparsity_warmup_steps,
            "unit_norm_decoder": self.unit_norm_decoder,
        }

    def penalty_weight(self, progress: AnyProgress) -> Float[Tensor, ""]:
        """The penalty's weight at this step."""
        risen = (progress.step + 1) / max(1, self.sparsity_warmup_steps)
        return self.sparsity_coefficient * risen.clamp_max(1)
