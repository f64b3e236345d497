"""Attribution patching: what patches would move, estimated from gradients in two passes rather than measured in one a
mask.

The estimate of a mask is the sum, over what it holds, of (source - base) x gradient: with the gradient at the base
that is attribution patching (Nanda 2023, neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al.
2023, arXiv 2310.10348), with the mean gradient along the straight way between both it is integrated gradients
(Sundararajan et al. 2017, arXiv 1703.01365), whose terms add up to the whole difference.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from interpretability.episodes import evaluating
from interpretability.patching import action_difference
from networks.precision import DEFAULT_PRECISION, Precision, autocast
from networks.taps import TappedAgent

AT_BASE = (0.0,)
ALONG_THE_WAY = tuple((step + 0.5) / 16 for step in range(16))
"""Midpoints of 16 equal parts."""


class Held(nn.Module):
    """Edit: one frame's activation in, and out the rows that are held in its place, through which gradients flow."""

    def __init__(self, rows: Float[Tensor, "K C *HW"]) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, acts: Float[Tensor, "1 C *HW"]) -> Float[Tensor, "K C *HW"]:
        return self.rows.to(acts.dtype)


def patch_estimates(
    agent: TappedAgent,
    tap: str,
    frame: UInt8[Tensor, "64 64 3"],
    base: Float[Tensor, "C *HW"],
    source: Float[Tensor, "C *HW"],
    towards: Bool[Tensor, " A"],
    other: Bool[Tensor, " A"],
    *,
    points: Sequence[float] = AT_BASE,
    precision: Precision = DEFAULT_PRECISION,
) -> Float[Tensor, "C *HW"]:
    """What putting in the source's activation would move `action_difference` by, of each channel and position alone.

    Args:
        agent: whose tap.
        tap: which.
        frame: that is run; what passes by the tap is of this frame.
        base: the tap's activation of it.
        source: the other frame's.
        towards: see `action_difference`.
        other: likewise.
        points: where between base (0) and source (1) gradients are taken; their mean counts.
        precision: of the passes.

    Returns:
        In nats, on the CPU in float32; their sum over a mask estimates that patch.

    Raises:
        ValueError: an unknown tap, activations that do not fit it, or no point.
    """
    agent.check_taps([tap])
    if tuple(base.shape) != agent.taps[tap] or base.shape != source.shape or not points:
        raise ValueError(
            f"base {tuple(base.shape)} and source {tuple(source.shape)} must be activations of {tap}, whose shape is "
            f"{agent.taps[tap]}, and points {list(points)} name one at least"
        )
    device = next(agent.parameters()).device
    start, change = base.to(device).float(), (source.to(device) - base.to(device)).float()
    shares = torch.tensor(points, device=device).view(-1, *[1] * start.ndim)
    with torch.enable_grad(), evaluating(agent), autocast(precision, device):
        rows = (start + shares * change).requires_grad_()
        logits = agent.forward(frame[None].to(device), edits=[(tap, Held(rows))]).logits
        assert logits is not None
        difference = action_difference(logits, towards.to(device), other.to(device))
        (gradient,) = torch.autograd.grad(difference.sum(), rows)
    return (change * gradient.mean(0)).float().cpu()
