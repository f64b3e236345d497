"""Gated: which latents fire and how strongly are decided apart, so that the penalty shrinks nothing."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from networks.sae_base import Progress
from networks.sae_losses import reconstruction_loss, sparsity_loss
from networks.sae_penalised import PenalisedSAE


class GatedSAE(PenalisedSAE):
    """A latent fires where its gate, the pre-activation, is above 0, and has the size relu(exp(gain) x gate +
    magnitude_bias): the paper's tied encoder, its magnitude's bias counted from the gate's (Rajamanoharan et al. 2024,
    "Improving dictionary learning with gated sparse autoencoders").

    The penalty is L1 on relu(gate), which no output is made of. What trains the gates beside it is an auxiliary
    loss: relu(gate) must reconstruct the activations too, through a decoder that this term does not train.

    Args:
        in_channels, expansion, kernel_size: see `SAEBase`.
        sparsity_coefficient: weight of the penalty.
        sparsity_warmup_steps: steps until the penalty has its full weight.
        unit_norm_decoder: hold the directions at length 1 while training, as the paper does.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        expansion: int = 4,
        kernel_size: int = 1,
        sparsity_coefficient: float = 1.0,
        sparsity_warmup_steps: int = 300,
        unit_norm_decoder: bool = True,
    ) -> None:
        super().__init__(
            in_channels, expansion, kernel_size, sparsity_coefficient, sparsity_warmup_steps, unit_norm_decoder
        )
        self.gain = nn.Parameter(torch.zeros(self.num_latents))
        self.magnitude_bias = nn.Parameter(torch.zeros(self.num_latents))

    def further_parameters(self) -> dict[nn.Parameter, float]:
        """What makes magnitudes of gates."""
        return {self.gain: 0.0, self.magnitude_bias: 0.0}

    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """The magnitude where the gate is open."""
        along = (1, -1, *(1 for _ in range(pre_activations.ndim - 2)))
        magnitudes = (pre_activations * self.gain.exp().view(along) + self.magnitude_bias.view(along)).relu()
        return torch.where(pre_activations > 0, magnitudes, 0)

    def losses(
        self,
        pre_activations: Float[Tensor, "B F *HW"],
        latents: Float[Tensor, "B F *HW"],
        errors: Float[Tensor, "B C *HW"],
        progress: Progress,
    ) -> dict[str, Float[Tensor, ""]]:
        """Reconstruction, sparsity of the gates, and their own reconstruction as auxiliary term."""
        gates = pre_activations.relu()
        coefficients = self.penalty_weight(progress).expand(self.num_latents)
        change = self.convolve(gates - latents.detach(), self.decoder_weight.detach())
        return {
            "reconstruction": reconstruction_loss(errors),
            "sparsity": sparsity_loss(gates, self.decoder_norms(), coefficients),
            "auxiliary": reconstruction_loss(errors.detach() + change),
        }
