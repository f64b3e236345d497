"""The plain sparse autoencoder: ReLU latents, to be trained with a penalty on their size."""

from jaxtyping import Float
from torch import Tensor

from networks.sae_base import SAEBase


class SparseAutoencoder(SAEBase):
    """latents = relu(encoder(normalised acts)); see `SAEBase` for its arguments."""

    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """Cut off below 0."""
        return pre_activations.relu()
