"""Where the steering study's readings and directions come from: untouched play, seen at each tap."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interpretability.patching import record_taps
from interpretability.perception import Views
from interpretability.steering import (
    Reader,
    Rows,
    eigen_directions,
    flat_rows,
    latent_steering,
    layer_behind,
    map_rows,
    mean_directions,
    probe_directions,
    probe_reader,
)
from networks import Precision, SAEBase, TappedAgent

DIRECTIONS: Final = {"probe": probe_directions, "means": mean_directions}
_BATCH: Final = 256


class Source(NamedTuple):
    """Where directions of a tap come from.

    Attributes:
        reader: says where each entity is.
        directions: that write it.
        control: of an agent with random weights, each as long.
    """

    reader: Reader
    directions: Float[Tensor, "K C *kk"]
    control: Float[Tensor, "K C *kk"]


def find_sources(
    agent: TappedAgent, taps: Sequence[str], views: Views, *, sources: Sequence[str], sae: SAEBase | None, seed: int,
    precision: Precision,
) -> dict[tuple[str, str], Source]:  # fmt: skip
    """Readings and directions by (tap, source).

    Args:
        agent: that is steered.
        taps: where.
        views: of the untouched agent's play.
        sources: of `DIRECTIONS`; an autoencoder's `latent` and, of a bilinear agent, `eigen` are added to them.
        sae: of one of the taps.
        seed: of the agent with random weights, and of the positions in which nothing lies.
        precision: of the passes.

    Raises:
        ValueError: an entity that no view shows.
    """
    drawn = agent.untrained(seed).to(next(agent.parameters()).device)

    def seen(network: TappedAgent, tap: str, encoder: SAEBase | None = None) -> Rows:
        parts = []
        for frames in torch.from_numpy(views.frames).split(_BATCH):
            acts = record_taps(network, frames, [tap], precision)[tap].float()
            with torch.inference_mode():
                parts.append((acts if encoder is None else encoder.encode(acts)).cpu())
        whole = torch.cat(parts)
        return map_rows(whole, views.labels, seed) if whole.ndim == 4 else flat_rows(whole, views.pursued)

    found: dict[tuple[str, str], Source] = {}
    for tap in taps:
        own, chance = seen(agent, tap), seen(drawn, tap)
        reader = probe_reader(own)
        for name in sources:
            directions = DIRECTIONS[name](own)
            found[tap, name] = Source(reader, directions, matched(DIRECTIONS[name](chance), directions))
        if sae is not None and sae.tap == tap:
            latents, directions, _ = latent_steering(seen(agent, tap, sae), sae)
            found[tap, "latent"] = Source(latents, directions, matched(mean_directions(chance), directions))
        behind = layer_behind(agent, tap)
        if behind is not None:
            directions = eigen_directions(agent, tap, own, seen(agent, behind))
            control = eigen_directions(drawn, tap, chance, seen(drawn, behind))
            found[tap, "eigen"] = Source(reader, directions, matched(control, directions))
    return found


def matched(directions: Float[Tensor, "K C *kk"], like: Float[Tensor, "K C *kk"]) -> Float[Tensor, "K C *kk"]:
    """Other directions, each as long as the one that it stands for."""
    lengths = directions.flatten(1).norm(dim=1), like.flatten(1).norm(dim=1)
    scale = lengths[1] / lengths[0].clamp(min=1e-12)
    return directions * scale.view(-1, *[1] * (directions.ndim - 1))
