"""What single units add to the logits: each is taken out of its tap where it fires, and nothing else is changed."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from networks import DEFAULT_PRECISION, Precision, SAEBase, TappedAgent, autocast

_BATCH = 512


class UnitRemoved(nn.Module):
    """Edit: takes from each sample's activation what one unit adds to it.

    A channel is set to 0 where it is above 0. Of an autoencoder's latent, what it adds to the reconstruction is
    subtracted from the activation itself, so that the error of the reconstruction plays no part.

    Args:
        units: number of the channel, or latent, of each sample.
        sae: of the latents; None for channels.
        sign: -1 sets channels to 0 where they are below 0 instead.
    """

    units: Tensor

    def __init__(self, units: Int64[Tensor, " B"], sae: SAEBase | None = None, sign: Literal[1, -1] = 1) -> None:
        super().__init__()
        self.register_buffer("units", units)
        self._sign = sign
        self._sae = [sae]  # in a list: not a part of this edit's parameters

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        rows = torch.arange(len(acts), device=acts.device)
        sae = self._sae[0]
        if sae is None:
            own = acts[rows, self.units]
            return acts.index_put((rows, self.units), own.clamp(max=0) if self._sign > 0 else own.clamp(min=0))
        with torch.autocast(acts.device.type, enabled=False):
            latents = sae.encode(acts)
            alone = torch.zeros_like(latents)
            alone[rows, self.units] = latents[rows, self.units]
            added = sae.decode(alone) - sae.decode(torch.zeros_like(latents))
        return (acts.float() - added).to(acts.dtype)


def unit_effects(
    agent: TappedAgent,
    tap: str,
    frames: UInt8[Tensor, "N 64 64 3"],
    chosen: Sequence[Int64[Tensor, " n"]],
    *,
    sae: SAEBase | None = None,
    sign: Literal[1, -1] = 1,
    precision: Precision = DEFAULT_PRECISION,
) -> Float[np.ndarray, "U A"]:
    """Mean effect of each unit on the logit of each action: with the unit, less without it.

    Logits of a frame are taken about their mean over the actions, as only differences between them matter to a policy.

    Args:
        agent: in eval mode.
        tap: where the units are.
        frames: what is looked at.
        chosen: for each unit the rows of `frames` that its mean is over, such as those where it fires.
        sae: an autoencoder on the tap, whose latents the units then are; channels of the tap without it.
        sign: of a channel the part above 0 (1) or below (-1) is its unit.
        precision: of the network's passes.

    Returns:
        NaN for units without frames.

    Raises:
        ValueError: an unknown tap.
    """
    agent.check_taps([tap])
    device = next(agent.parameters()).device
    units = torch.cat([torch.full_like(rows, unit) for unit, rows in enumerate(chosen)])
    rows = torch.cat(list(chosen))

    def logits(batch: Tensor, edits: Sequence[tuple[str, nn.Module]] = ()) -> Tensor:
        with torch.no_grad(), autocast(precision, device):
            found = agent.forward(batch.to(device), edits=edits).logits
        assert found is not None
        return (found - found.mean(1, keepdim=True)).double().cpu()

    clean = torch.cat([logits(batch) for batch in frames.split(_BATCH)])
    effects = torch.zeros(len(chosen), clean.shape[1], dtype=torch.float64)
    for some, of in zip(rows.split(_BATCH), units.split(_BATCH), strict=True):
        removed = logits(frames[some], [(tap, UnitRemoved(of.to(device), sae, sign))])
        effects.index_add_(0, of, clean[some] - removed)
    counts = torch.tensor([len(rows) for rows in chosen])
    return torch.where(counts[:, None] > 0, effects / counts[:, None], torch.nan).numpy()
