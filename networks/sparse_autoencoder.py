"""The plain sparse autoencoder: ReLU latents with a penalty on their size."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from networks.sae_base import AnyProgress, Progress, RowTerms
from networks.sae_losses import reconstruction_loss, sparsity_loss
from networks.sae_penalised import PenalisedSAE


class SparseAutoencoder(PenalisedSAE):
    """latents = relu(encoder(normalised acts)), with L1 or a reweighted L1 as penalty (see `sparsity_loss`).

    Args:
        in_channels, expansion, kernel_size: see `SAEBase`.
        sparsity_coefficient: weight of the penalty.
        sparsity_knee: latents far above it are hardly penalised more; null for plain L1.
        rare_frequency: a latent that fires on a smaller share of inputs is penalised in proportion less, so that it
            lives on what the others leave unexplained; null penalises all alike.
        sparsity_warmup_steps: steps until the penalty has its full weight.
        unit_norm_decoder: hold the directions at length 1 while training; the penalty takes their length into account
            either way.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        expansion: int = 4,
        kernel_size: int = 1,
        sparsity_coefficient: float = 1.0,
        sparsity_knee: float | None = 1.0,
        rare_frequency: float | None = 1e-3,
        sparsity_warmup_steps: int = 300,
        unit_norm_decoder: bool = False,
    ) -> None:
        super().__init__(
            in_channels, expansion, kernel_size, sparsity_coefficient, sparsity_warmup_steps, unit_norm_decoder
        )
        for name, value in (("sparsity_knee", sparsity_knee), ("rare_frequency", rare_frequency)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}: it must be above 0, or null")
        self.sparsity_knee, self.rare_frequency = sparsity_knee, rare_frequency

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().config() | {"sparsity_knee": self.sparsity_knee, "rare_frequency": self.rare_frequency}

    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """Cut off below 0."""
        return pre_activations.relu()

    def losses(
        self,
        pre_activations: Float[Tensor, "B F *HW"],
        latents: Float[Tensor, "B F *HW"],
        errors: Float[Tensor, "B C *HW"],
        progress: Progress,
    ) -> dict[str, Float[Tensor, ""]]:
        """Reconstruction and sparsity."""
        coefficients = self._coefficients(progress)
        return {
            "reconstruction": reconstruction_loss(errors),
            "sparsity": sparsity_loss(latents, self.decoder_norms(), coefficients, self.sparsity_knee),
        }

    def row_terms(self, progress: AnyProgress) -> RowTerms:
        """All above 0, with the penalty."""
        if self.rare_frequency is None and progress.number + 1 >= self.sparsity_warmup_steps:
            return RowTerms(None, float(self.sparsity_coefficient), self.sparsity_knee)
        return RowTerms(None, self._coefficients(progress), self.sparsity_knee)

    def _coefficients(self, progress: AnyProgress) -> Float[Tensor, " F"]:
        coefficients = self.penalty_weight(progress).expand(self.num_latents)
        if self.rare_frequency is not None:
            # not a number before the first input
            coefficients = coefficients * (progress.frequency / self.rare_frequency).clamp_max(1).nan_to_num(1)
        return coefficients
