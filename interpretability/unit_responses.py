"""One number a unit and frame: what the units of many taps do in many states, without keeping their maps."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import trange

from environments import EnvironmentSettings, render_states
from interpretability.episodes import evaluating
from networks import Precision, SAEBase, TappedAgent, autocast

LATENTS: Final = "latents"
PIXELS: Final = "pixels"
_AT_ONCE: Final = 256

Reading = Callable[[Float[Tensor, "B C *HW"], slice], Float[Tensor, "B C"]]
"""Maps of a batch, and which rows of all states they are, to a number a unit and frame; on the CPU in float32."""


@torch.no_grad()
def unit_responses(
    agent: TappedAgent,
    states: Sequence[bytes],
    settings: EnvironmentSettings,
    taps: Sequence[str],
    read: Reading,
    *,
    sae: SAEBase | None = None,
    precision: Precision = "fp32",
    progress: str | None = None,
) -> dict[str, Float[np.ndarray, "N U"]]:
    """Responses by tap.

    Args:
        agent: on the device where its parameters are.
        states: saved or edited ones.
        settings: their game.
        taps: of the agent; `pixels` stands for the frame's own three colours, between 0 and 1.
        read: makes a number of a unit's map; flat taps come as they are, [B C].
        sae: an autoencoder of one of the agent's taps, whose latents come as `latents`.
        precision: of the agent's passes.
        progress: title of a progress bar.

    Raises:
        ValueError: an unknown tap.
    """
    known = [tap for tap in taps if tap != PIXELS]
    agent.check_taps(known)
    device = next(agent.parameters()).device
    recorded = dict.fromkeys([*known, *([] if sae is None else [sae.tap])])
    found: dict[str, list[Tensor]] = {}
    with evaluating(agent):
        for start in trange(0, len(states), _AT_ONCE, desc=progress, disable=progress is None, leave=False):
            rows = slice(start, min(start + _AT_ONCE, len(states)))
            frames = torch.from_numpy(render_states(states[rows], settings)).to(device)
            with autocast(precision, device):
                acts = agent.forward(frames, record=tuple(recorded), outputs=False).activations
            maps = {tap: acts[tap] for tap in known}
            if sae is not None:
                maps[LATENTS] = sae.encode(acts[sae.tap].float())
            if PIXELS in taps:
                maps[PIXELS] = frames.permute(0, 3, 1, 2) / 255
            for tap, values in maps.items():
                found.setdefault(tap, []).append(read(values.float().cpu(), rows))
    return {tap: torch.cat(parts).numpy() for tap, parts in found.items()}
