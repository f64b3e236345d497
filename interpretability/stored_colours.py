"""A game's colours, fitted once for each environment and kept on disk for whatever makes images of it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from environments import VALIDATION_LEVELS, EnvironmentSettings, VectorEnvironment
from interpretability.colour import ColourMoments, ColourStatistics
from networks import read_weights
from networks.weights import save_tensors

_FRAMES, _AT_ONCE = 2_048, 64
_PHASES, _TURNS, _HOLD = 4, 2, 4  # a frame is seen after 0, 2, 4 or 6 actions, each held for 4 steps
_NEXT_LEVEL = -1
_FIT = {"frames": _FRAMES, "at_once": _AT_ONCE, "phases": _PHASES, "turns": _TURNS, "hold": _HOLD}


def game_colours(settings: EnvironmentSettings, cache_dir: str | Path | None) -> ColourStatistics:
    """Colours, and magnitudes of spectra, of 2 048 frames of as many validation levels, early in play by chance.

    The play is the game's alone: neither an agent nor a global random generator has a part in it, so whoever asks
    gets the same. The file's name carries a hash of game, difficulty and how colours are fitted, which it repeats
    inside; one that says otherwise, was cut short or altered is fitted anew.

    Args:
        settings: what is played; its range of levels does not matter.
        cache_dir: folder of the file, such as the one of activation caches; None keeps nothing.

    Raises:
        ValueError: the game's frames are of one colour.
        OSError: the folder cannot be written.
    """
    description = {"game": settings.game, "distribution_mode": settings.distribution_mode, **_FIT}
    if cache_dir is None:
        return _fit(settings)
    name = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(cache_dir) / f"colours-{settings.game}-{name}.safetensors"
    found = _read(path, description)
    if found is None:
        found = _fit(settings)
        assert found.magnitude is not None
        tensors = {"mean": found.mean, "covariance": found.covariance, "magnitude": found.magnitude}
        save_tensors(path, tensors, {"colours": description})
    return found


def _read(path: Path, description: Mapping[str, object]) -> ColourStatistics | None:
    """What the file holds; None where there is none that is whole and of these settings."""
    try:
        tensors, metadata = read_weights(path)
    except ValueError:
        return None
    if metadata.get("colours") != description:
        return None
    return ColourStatistics(tensors["mean"], tensors["covariance"], tensors["magnitude"])


def _fit(settings: EnvironmentSettings) -> ColourStatistics:
    generator = np.random.default_rng(0)
    moments = ColourMoments(magnitudes=True)
    levels = dataclasses.replace(settings, start_level=VALIDATION_LEVELS[0], num_levels=len(VALIDATION_LEVELS))
    environment = VectorEnvironment(levels, _AT_ONCE)
    for round_ in range(_FRAMES // _AT_ONCE):
        environment.act(np.full(_AT_ONCE, _NEXT_LEVEL))
        for _ in range(_TURNS * (round_ % _PHASES)):
            actions = generator.integers(environment.num_actions, size=_AT_ONCE)
            for _ in range(_HOLD):
                environment.observe()
                environment.act(actions)
        moments.update(torch.from_numpy(environment.observe()[1].copy()))
    environment.close()
    return moments.statistics()
