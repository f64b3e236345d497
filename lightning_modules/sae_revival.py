"""Two ways to bring dead latents back: a loss that has them explain what the others leave (AuxK), or to begin them anew
where the autoencoder does worst, with their optimiser state forgotten (resampling).
"""

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

from networks import SAEBase
from networks.sae_losses import reconstruction_loss
from networks.topk_sae import keep_top


def auxk_loss(
    sae: SAEBase,
    pre_activations: Float[Tensor, "B F *HW"],
    errors: Float[Tensor, "B C *HW"],
    dead: Bool[Tensor, " F"],
    k: int,
) -> Float[Tensor, ""]:
    """What is left of the error when each input's k largest dead latents are to explain it; 0 while none is dead.

    Gao et al. 2024, "Scaling and evaluating sparse autoencoders", on preventing dead latents. Only the dead latents
    get a gradient.

    Args:
        sae: whose decoder is used.
        pre_activations: of one batch.
        errors: reconstruction minus activation, in normalised units.
        dead: latents that take part.
        k: dead latents that an input may use.
    """
    along = (1, -1, *(1 for _ in range(pre_activations.ndim - 2)))
    revived = keep_top(torch.where(dead.view(along), pre_activations.relu(), 0), k)
    left = errors.detach() + sae.convolve(revived, sae.decoder_weight)
    return reconstruction_loss(left) * dead.any()


@torch.no_grad()
def resample_latents(
    sae: SAEBase,
    optimiser: Optimizer,
    which: Bool[Tensor, " F"],
    acts: Float[Tensor, "B C *HW"],
    seed: int,
    strength: float = 0.2,
) -> None:
    """Give some latents new weights, after Bricken et al. 2023, "Towards Monosemanticity", appendix on resampling.

    Each is pointed at an input drawn with a probability in proportion to its squared loss. Its decoder becomes that
    input's direction, with length 1 in normalised units, at the middle of the kernel; its encoder the same direction,
    `strength` times as long as those of the other latents are on average (of all latents where there are no others),
    with a bias under which it fires where at least half of that input's size is seen; a kind's further parameters begin
    with their first values. Nothing here waits for the device; ranks get the same weights.

    Args:
        sae: changed in place.
        optimiser: Adam's moments of the changed weights are set to 0.
        which: latents to change.
        acts: raw activations to draw inputs from.
        seed: of the draw.
        strength: encoder length of the new latents, as a share of the others' mean.
    """
    errors = (acts - sae(acts)).float() / sae.scale
    losses = errors.movedim(1, -1).flatten(0, -2).square().sum(1)
    inputs = (acts.movedim(1, -1).flatten(0, -2).float() - sae.mean) / sae.scale - sae.decoder_bias
    noise = torch.Generator(acts.device).manual_seed(seed)
    # a batch that is not finite is for the loss to report
    chances = losses.square().nan_to_num(0, posinf=0).clamp_min(1e-12)
    drawn = inputs[torch.multinomial(chances, sae.num_latents, replacement=True, generator=noise)]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(drawn, 0)
    sizes = drawn.norm(dim=1).clamp_min(1e-6)
    directions = drawn / sizes[:, None]

    others = torch.where(which.all(), 1.0, (~which).float())
    lengths = sae.encoder_weight.flatten(1).norm(dim=1)
    length = (lengths * others).sum() / others.sum()
    length = strength * torch.where(length == 0, 1.0, length)  # or no gradient would ever reach what is made here
    middle = sae.kernel_size // 2
    decoder = torch.zeros_like(sae.decoder_weight)
    decoder[:, :, middle, middle] = directions.T
    encoder = torch.zeros_like(sae.encoder_weight)
    encoder[:, :, middle, middle] = length * directions
    # the encoder sees inputs before the decoder's bias is taken off
    bias = -length * (directions @ sae.decoder_bias + sizes / 2)
    changes: list[tuple[Tensor, Tensor, Tensor]] = [
        (sae.encoder_weight, encoder, which[:, None, None, None]),
        (sae.encoder_bias, bias, which),
        (sae.decoder_weight, decoder, which[None, :, None, None]),
    ]
    for own, value in sae.further_parameters().items():
        changes.append((own, torch.full_like(own, value), which))
    for parameter, new, mask in changes:
        parameter.copy_(torch.where(mask, new, parameter))
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimiser.state[parameter]:
                optimiser.state[parameter][name].masked_fill_(mask, 0)
