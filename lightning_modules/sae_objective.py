"""What one training step of an autoencoder computes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_modules.sae_revival import auxk_loss
from networks import Progress, SAEBase
from networks.sae_losses import count_firings


class SAEObjective(nn.Module):
    """The loss of one batch, as one module, so that it compiles as one piece.

    Args:
        sae: trained by its own loss terms.
        auxk_coefficient: weight of the AuxK loss; None for none.
        auxk_latents: dead latents that it lets an input use.
    """

    def __init__(self, sae: SAEBase, auxk_coefficient: float | None, auxk_latents: int) -> None:
        super().__init__()
        self.sae, self.auxk_coefficient, self.auxk_latents = sae, auxk_coefficient, auxk_latents

    def forward(
        self, acts: Float[Tensor, "B C *HW"], progress: Progress
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]], Int[Tensor, " F"]]:
        """The loss, what is logged of it by name, and on how many inputs each latent fired."""
        with torch.autocast(acts.device.type, enabled=False):
            pre_activations = self.sae.pre_activations(acts)
            latents = self.sae.activate(pre_activations)
            errors = (self.sae.decode(latents) - acts) / self.sae.scale
            terms = self.sae.losses(pre_activations, latents, errors, progress)
            if self.auxk_coefficient is not None:
                left = auxk_loss(self.sae, pre_activations, errors, progress.dead, self.auxk_latents)
                terms = terms | {"auxk": self.auxk_coefficient * left}
            loss = torch.stack(list(terms.values())).sum()
        self.sae.observe(latents.detach())
        fired = count_firings(latents)
        numbers = {"loss": loss} | {f"{name}_loss": term for name, term in terms.items()}
        numbers["train_l0"] = fired.sum() / (acts.numel() // acts.shape[1])
        numbers["train_explained_variance"] = 1 - errors.square().mean()  # normalised channels have variance 1
        return loss, {name: number.detach() for name, number in numbers.items()}, fired
