"""Activations of a tap's units, or of an autoencoder's latents, on frames of an agent's own play."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from environments import EnvironmentSettings
from interpretability.episodes import PlayedStep, evaluating, play_episodes
from networks import DEFAULT_PRECISION, Precision, SAEBase, TappedAgent, autocast

_AT_ONCE = 256


def played_frames(
    agent: TappedAgent,
    levels: Sequence[int] | Int[np.ndarray, " L"],
    *,
    settings: EnvironmentSettings,
    per_level: int = 8,
    max_steps: int = 100,
    seed: int = 0,
    num_environments: int = 64,
    precision: Precision = DEFAULT_PRECISION,
    progress: str | None = None,
) -> UInt8[Tensor, "F 64 64 3"]:
    """Frames of sampled play, up to `per_level` of each level, evenly spaced over its first `max_steps` steps.

    Args:
        agent, levels, settings, max_steps, seed, num_environments, precision, progress: as for `play_episodes`.
        per_level: frames of each level; an episode that ends early gives fewer.

    Raises:
        ValueError: as for `play_episodes`.
    """
    every = -(-max_steps // per_level)
    found: dict[tuple[int, int], np.ndarray] = {}

    def look(step: PlayedStep) -> None:
        for row in np.flatnonzero(step.steps % every == 0):
            found[int(step.levels[row]), int(step.steps[row])] = step.frames[row].copy()

    play_episodes(
        agent, levels, settings=settings, seed=seed, num_environments=num_environments, max_steps=max_steps,
        precision=precision, observer=look, progress=progress,
    )  # fmt: skip
    return torch.from_numpy(np.stack([found[key] for key in sorted(found)]))


@torch.inference_mode()
def unit_maps(
    agent: TappedAgent,
    tap: str,
    frames: UInt8[Tensor, "F 64 64 3"],
    *,
    sae: SAEBase | None = None,
    precision: Precision = DEFAULT_PRECISION,
) -> Float[Tensor, "F U *HW"]:
    """What each unit of a tap, or each latent of its autoencoder, makes of frames; on the CPU.

    Raises:
        ValueError: an unknown tap.
    """
    device = next(agent.parameters()).device
    found: list[Tensor] = []
    with evaluating(agent):
        for part in frames.split(_AT_ONCE):
            with autocast(precision, device):
                acts = agent.forward(part.to(device), record=(tap,), outputs=False).activations[tap]
            found.append((acts if sae is None else sae.encode(acts)).float().cpu())
    return torch.cat(found)
