"""Activation patching: what a network makes of one frame with a part of another frame's activation put in.

The part is a mask over a tap, and all masks of a tap go through the network together: the frame itself is run once, up
to the tap, and from there on one row a mask.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from interpretability.episodes import evaluating
from networks.precision import DEFAULT_PRECISION, Precision, autocast
from networks.taps import TappedAgent

_AT_ONCE = 256  # masks in one pass
CELLS = 16
"""Blocks a side that a map is divided into at most, to be patched one by one."""


class Patch(nn.Module):
    """Edit: one frame's activation in, and out one row a mask, which holds another frame's activation where it is set.

    Unlike other edits it changes the size of the batch, from 1 to the number of masks; all that follows in the network
    (streams that pass by as well) is broadcast to it.

    Args:
        source: the other frame's activation.
        masks: over channels (or 1 for all of them) and positions.
    """

    source: Tensor
    masks: Tensor

    def __init__(self, source: Float[Tensor, "C *HW"], masks: Bool[Tensor, "M C_or_1 *HW"]) -> None:
        super().__init__()
        self.register_buffer("source", source)
        self.register_buffer("masks", masks)

    def forward(self, acts: Float[Tensor, "1 C *HW"]) -> Float[Tensor, "M C *HW"]:
        return torch.where(self.masks, self.source.to(acts.dtype), acts)


@torch.inference_mode()
def patched_logits(
    agent: TappedAgent,
    tap: str,
    frame: UInt8[Tensor, "64 64 3"],
    source: Float[Tensor, "C *HW"],
    masks: Bool[Tensor, "M C_or_1 *HW"],
    precision: Precision = DEFAULT_PRECISION,
) -> Float[Tensor, "M A"]:
    """Logits of a frame with the source's activation at a tap where each mask is set, on the CPU in float32.

    Raises:
        ValueError: an unknown tap, or masks that do not fit it.
    """
    agent.check_taps([tap])
    shape = agent.taps[tap]
    if tuple(masks.shape[2:]) != shape[1:] or masks.shape[1] not in (1, shape[0]) or tuple(source.shape) != shape:
        raise ValueError(
            f"masks {tuple(masks.shape)} and source {tuple(source.shape)} do not fit {tap}, whose shape is {shape}: "
            "give [M 1 or C, ...positions] and an activation of the tap"
        )
    device = next(agent.parameters()).device
    found = []
    with evaluating(agent), autocast(precision, device):
        for some in masks.split(_AT_ONCE):
            edit = Patch(source.to(device), some.to(device))
            logits = agent.forward(frame[None].to(device), edits=[(tap, edit)]).logits
            assert logits is not None
            found.append(logits.float().cpu())
    return torch.cat(found)


@torch.inference_mode()
def record_taps(
    agent: TappedAgent, frames: UInt8[Tensor, "N 64 64 3"], taps: list[str], precision: Precision = DEFAULT_PRECISION
) -> Mapping[str, Float[Tensor, "N C *HW"]]:
    """What taps yield for a few frames."""
    device = next(agent.parameters()).device
    with evaluating(agent), autocast(precision, device):
        return agent.forward(frames.to(device), record=taps, outputs=False).activations


def block_masks(shape: tuple[int, ...], blocks: int = CELLS) -> Bool[Tensor, "G2 1 H W"]:
    """One mask for each square block of a map's positions, row by row; a block is one position where there are few.

    G, the blocks a side, is at most `blocks`.
    """
    _, height, width = shape
    side = -(-max(height, width) // blocks)
    rows, columns = -(-height // side), -(-width // side)
    one = torch.eye(rows * columns, dtype=torch.bool).view(-1, 1, rows, columns)
    return one.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]


def channel_masks(shape: tuple[int, ...]) -> Bool[Tensor, "C C *ones"]:
    """One mask for each channel, at all positions."""
    channels, *space = shape
    return torch.eye(channels, dtype=torch.bool).view(channels, channels, *[1] * len(space)).expand(-1, -1, *space)


def near(place: tuple[float, float], radius: float, side: int, shape: Sequence[int]) -> Bool[Tensor, "1 H W"]:
    """The positions of a map over the whole frame that share any of the square around a place.

    Args:
        place: its middle (x, y) in cells, y upwards.
        radius: half of the square's side in cells, .5 for the cell itself.
        side: cells a side of the world.
        shape: of the tap.
    """
    _, height, width = shape
    across, down = torch.arange(width) * side / width, torch.arange(height) * side / height
    x, y = place[0], side - place[1]
    columns = (across < x + radius) & (across + side / width > x - radius)
    rows = (down < y + radius) & (down + side / height > y - radius)
    return (rows[:, None] & columns)[None]


def aligned(values: Float[np.ndarray, "N G G"], centres: Int[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 2G-1 2G-1"]:
    """Maps moved so that each one's centre (row, column) comes to lie in the middle; NaN where a map does not reach."""
    count, height, width = values.shape
    moved = np.full((count, 2 * height - 1, 2 * width - 1), np.nan)
    for number, (row, column) in enumerate(centres):
        top, left = height - 1 - row, width - 1 - column
        moved[number, top : top + height, left : left + width] = values[number]
    return moved


def action_difference(
    logits: Float[Tensor, "*B A"], towards: Bool[Tensor, " A"], other: Bool[Tensor, " A"]
) -> Float[Tensor, "*B"]:
    """Log-probability of the actions towards one place less that of those towards another, in nats.

    Actions that go towards both are left out.
    """
    both = towards & other
    one, two = (logits.double()[..., chosen & ~both].logsumexp(-1) for chosen in (towards, other))
    return one - two
