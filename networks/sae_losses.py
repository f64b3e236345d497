"""The loss of a sparse autoencoder as pure functions, in normalised units (variance 1 a channel on average)."""

from jaxtyping import Bool, Float, Int
from torch import Tensor


def reconstruction_loss(errors: Float[Tensor, "B C *HW"]) -> Float[Tensor, ""]:
    """Squared error, summed over channels, averaged over inputs (an input is one position of one map).

    Args:
        errors: reconstruction minus activation, divided by the normalisation's scale.
    """
    return errors.square().mean() * errors.shape[1]


def sparsity_loss(
    latents: Float[Tensor, "B F *HW"],
    decoder_norms: Float[Tensor, " F"],
    coefficients: Float[Tensor, " F"],
    knee: float | None = None,
) -> Float[Tensor, ""]:
    """Weighted penalty on a = latent x length of its direction, summed over latents, averaged over inputs.

    The length keeps the decoder from growing so that latents can shrink (Conerly et al. 2024, "Update on how we train
    SAEs"). Without a knee the penalty is a, the L1 norm. With one it is knee x log(1 + a / knee): as L1 for a far
    below the knee, flat far above it, so that small activations are driven out and large ones hardly shrunk (Candès,
    Wakin and Boyd 2008, "Enhancing sparsity by reweighted l1 minimization", eq. 9).

    Args:
        latents: none below 0.
        decoder_norms: in normalised units.
        coefficients: weight of each latent's penalty.
        knee: in normalised units, above 0; None for plain L1.
    """
    along = (1, -1, *(1 for _ in range(latents.ndim - 2)))
    penalty = latents * decoder_norms.view(along)
    if knee is not None:
        penalty = knee * (penalty / knee).log1p()
    return (penalty * coefficients.view(along)).mean() * penalty.shape[1]


def count_firings(latents: Float[Tensor, "B F *HW"]) -> Int[Tensor, " F"]:
    """On how many inputs each latent is above 0."""
    active: Bool[Tensor, "B F *HW"] = latents > 0
    return active.sum([dim for dim in range(latents.ndim) if dim != 1])
