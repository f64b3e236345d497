"""Which inputs write to what a probe reads: the weights of the layer before its tap, seen from the probe.

A layer is linear in what it reads, so a direction of its output is a direction of its input: the output's direction
carried back through the weights. For a convolution that is, for the channels at one position, a patch of the input,
[channels, kernel, kernel]; for a fully connected layer on a map, the whole map. As a matrix of channels by positions it
falls apart, by its singular values, into pairs of a pattern of input channels and a spatial filter: the largest pair
says most of what has to be where for the probe's score to rise. The layer is asked for its weights by its own gradient,
so any architecture's will do. Of a bilinear layer both of its maps are shown, one at a time; the exact view of their
product is `decompose`.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from interpretability.bilinear_decomposition import split_direction
from interpretability.pictures import Row, Tile, sheet
from networks.taps import Step, TappedAgent

_NAMED = 5  # channels named beside a filter


@dataclass(frozen=True)
class WrittenBy:
    """What a layer's input writes to one direction of its output.

    Attributes:
        source: the tap that the layer reads.
        weights: the direction in its input: [C K K] for one position of a convolution, [C H W] or [C] for a fully
            connected layer.
        sizes: singular values of the weights as channels x positions, the largest first.
        channels: for each a pattern of input channels of length 1, its largest entry positive.
        filters: for each the spatial filter that goes with it, of length 1; [R 1 1] where the input has no positions.
    """

    source: str
    weights: Float[Tensor, "C *KK"]
    sizes: Float[Tensor, " R"]
    channels: Float[Tensor, "R C"]
    filters: Float[Tensor, "R K K"]


@torch.inference_mode(False)  # gradients are needed, also where a Trainer tests
def written_by(agent: TappedAgent, tap: str, direction: Float[Tensor, "C *HW"]) -> list[WrittenBy]:
    """The weights of the layer before a tap, seen from a direction there.

    Args:
        agent: whose layer.
        tap: behind it, before or after its nonlinearity.
        direction: of channels at one position [C] (`LinearReadout.direction` in the position form), or of the tap's
            whole shape; a map is first taken at its main pattern of channels.

    Returns:
        One, or two for a bilinear layer: of its left and its right map.

    Raises:
        ValueError: the tap has no layer of its own before it, or the direction does not fit.
    """
    agent.check_taps([tap])
    agent = copy.deepcopy(agent).cpu().float().requires_grad_(True)  # whose gradients tell a layer that has weights
    shape = agent.taps[tap] or (1,)
    if direction.shape not in (shape, shape[:1]):
        raise ValueError(f"the direction is {tuple(direction.shape)}: {tap} takes {shape} or {shape[:1]}")
    if direction.ndim == 3:
        direction = split_direction(direction)[0][0].to(direction)
    source, step, units = _layer(agent, tap)
    if units not in (shape[0], 2 * shape[0]):
        raise ValueError(f"{tap} has no layer of its own before it: choose a tap behind a layer with weights")
    found = []
    for half in range(units // shape[0]):
        whole = torch.zeros(units, dtype=torch.float32)
        whole[half * shape[0] : (half + 1) * shape[0]] = direction.detach().float().cpu().clone()
        found.append(_decomposed(source, _input_direction(agent, source, step, whole)))
    return found


def _layer(agent: TappedAgent, tap: str) -> tuple[str, Step, int]:
    """The tap that the layer before `tap` reads, the layer, and how many units it has."""
    before = "frame"
    for name, step in agent.trunk():
        if name in (tap, f"{tap}.pre"):
            shape = agent.taps[name]
            return before, step, shape[0]
        before = name
    heads = dict(zip(("logits", "value"), agent.heads(), strict=True))
    return before, heads[tap], (agent.taps[tap] or (1,))[0]  # the last tap of the trunk is what both heads read


def _input_direction(agent: TappedAgent, source: str, step: Step, whole: Float[Tensor, " U"]) -> Tensor:
    """The direction carried back through a layer, from the middle position of a map; cropped to what it reads."""
    refusal = ValueError(f"what follows {source} is no layer with weights: choose another tap")
    shape = (3, 64, 64) if source == "frame" else agent.taps[source]
    noise = torch.Generator().manual_seed(0)
    gradients = []
    for _ in range(2):  # at two inputs, where those of a linear layer agree
        inputs = torch.randn(1, *shape, generator=noise).requires_grad_()
        with torch.enable_grad():
            try:
                units = step(inputs)
            except IndexError:  # the sum of a residual stream wants what a whole pass leaves behind
                raise refusal from None
            scores = units[0] if units.ndim == 2 else units[0, :, units.shape[2] // 2, units.shape[3] // 2]
            if len(scores) != len(whole):
                raise refusal
            found = torch.autograd.grad(scores @ whole, [inputs, *agent.parameters()], allow_unused=True)
        if all(gradient is None for gradient in found[1:]) or found[0] is None:
            raise refusal
        gradients.append(found[0][0])
    if not torch.allclose(gradients[0], gradients[1], atol=1e-5):
        raise refusal
    gradient = gradients[0].contiguous()
    if gradient.ndim == 1 or units.ndim == 2:
        return gradient
    rows, columns = (gradient.abs().amax(axes) > 0 for axes in ((0, 2), (0, 1)))
    return gradient[:, rows][:, :, columns].contiguous()


def _decomposed(source: str, weights: Float[Tensor, "C *KK"]) -> WrittenBy:
    maps = weights if weights.ndim == 3 else weights[:, None, None]
    patterns, filters = split_direction(maps)
    sizes = filters.flatten(1).norm(dim=1)
    largest = patterns.gather(1, patterns.abs().argmax(1, keepdim=True)).sign()
    units = filters / sizes.clamp_min(1e-12)[:, None, None]
    return WrittenBy(source, weights, sizes, patterns * largest, units * largest[:, :, None])


def draw_written_by(found: list[WrittenBy], title: str, number: int = 4) -> UInt8[Tensor, "H W 3"]:
    """A sheet with the main filters (red raises the score, blue lowers it) and the input channels that they belong to.

    Args:
        found: from `written_by`.
        title: what the direction is.
        number: filters shown of each.
    """
    rows = []
    for index, written in enumerate(found):
        share = written.sizes.square() / written.sizes.square().sum().clamp_min(1e-12)
        for rank in range(min(number, int((share > 1e-6).sum()))):
            pattern = written.channels[rank]
            top = pattern.abs().topk(min(_NAMED, len(pattern))).indices.tolist()
            part = ("left map, " if index == 0 else "right map, ") if len(found) > 1 else ""
            lines = [f"{part}{share[rank]:.0%} of the weights", *(f"channel {c}: {pattern[c]:+.2f}" for c in top)]
            tiles = [Tile(_signed(written.filters[rank]), "filter"), Tile(_bars(pattern), "channels")]
            rows.append(Row(f"filter {rank + 1}", lines, tiles))
    lines = [title, f"read from {found[0].source}; in filters red raises the score for channels of positive sign"]
    return sheet("What writes to it", lines, (("where", 1), ("what", 1)), rows)


def _signed(values: Float[Tensor, "H W"]) -> UInt8[Tensor, "H W 3"]:
    """White at 0, red above, blue below."""
    level = (values / values.abs().max().clamp_min(1e-12)).float()
    red, blue = 1 + level.clamp(max=0), 1 - level.clamp(min=0)
    return (torch.stack([red, 1 - level.abs(), blue], 2) * 255).round().to(torch.uint8)


def _bars(pattern: Float[Tensor, " C"]) -> UInt8[Tensor, "H W 3"]:
    """A bar for each channel, upwards and red where positive."""
    side = 128
    picture = torch.full((side, side, 3), 255, dtype=torch.uint8)
    heights = (pattern / pattern.abs().max().clamp_min(1e-12) * (side // 2 - 4)).round().int().tolist()
    edges = torch.linspace(0, side, len(heights) + 1).round().int().tolist()
    for channel, height in enumerate(heights):
        top, bottom = sorted((side // 2 - height, side // 2))
        colour = (214, 60, 60) if height > 0 else (60, 90, 214)
        picture[top:bottom, edges[channel] : max(edges[channel] + 1, edges[channel + 1] - 1)] = torch.tensor(
            colour, dtype=torch.uint8
        )
    picture[side // 2] = 200
    return picture
