"""Taps whose units fall below 0, where 0 is not silence."""

import torch

from environments import FRAME_SHAPE
from networks import SAEBase, TappedAgent


@torch.no_grad()
def falls_below_zero(agent: TappedAgent, tap: str, sae: SAEBase | None = None) -> bool:
    """Whether units of a tap fall below 0, as seen on frames of noise.

    Those of a residual stream do, of a layer that no ReLU follows, of products, logits and the value; rectified ones
    and pools of them do not, nor does any autoencoder's latent.

    Args:
        agent: whose tap.
        tap: which.
        sae: whose latents the units are; None for the tap's own.

    Raises:
        ValueError: an unknown tap.
    """
    agent.check_taps([tap])
    if sae is not None or tap in ("logits", "value"):  # noise may happen to be worth something everywhere
        return sae is None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (8, *FRAME_SHAPE), dtype=torch.uint8, generator=generator)
    acts = agent.forward(noise.to(next(agent.parameters()).device), record=(tap,), outputs=False).activations[tap]
    return bool((acts < 0).any())
