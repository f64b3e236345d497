"""One episode step by step: what was seen, what units answered, what the policy wanted, with and without an edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from environments.heist import ACTION_STEPS, Labels
from interpretability.episodes import evaluating
from interpretability.replay import Replay
from networks import DEFAULT_PRECISION, Edit, Precision, SAEBase, TappedAgent, autocast

LATENTS = "sae"
"""Stands for an autoencoder's latents where otherwise a tap is named."""
Shown = Mapping[str, int | list[int]]
"""Tap, or `sae` -> which units are shown, or how many: those that vary most over the episode."""
_BATCH = 64

ACTION_ARROWS = ("↙", "←", "↖", "↓", "•", "↑", "↘", "→", "↗")
"""Of procgen's actions 0 to 8 (dx = a // 3 - 1, dy = a % 3 - 1, y upwards); the others do not move."""
ACTION_NAMES = ("down left", "left", "up left", "down", "stay", "up", "down right", "right", "up right", "other")
COMPASS = (2, 5, 8, 1, 4, 7, 0, 3, 6)
"""The moves row by row as they lie around the player."""


@dataclass(frozen=True)
class Arm:
    """One agent, untouched or edited, on the T frames.

    Attributes:
        name: `untouched` or `edited`.
        probabilities: of actions 0 to 8, and of all others together.
        values: the value head's estimates.
        maps: of the n shown units of each source.
    """

    name: str
    probabilities: Float32[np.ndarray, "T 10"]
    values: Float32[np.ndarray, " T"]
    maps: dict[str, Float32[np.ndarray, "T n H W"]]


@dataclass(frozen=True)
class ObservedEpisode:
    """An episode and what went on inside.

    Attributes:
        replay: its frames and actions.
        units: numbers of the shown units of each source.
        arms: the untouched agent, and the edited one if there is an edit; both on the same frames.
        labels: of each frame; None where the game has no oracle.
    """

    replay: Replay
    units: dict[str, list[int]]
    arms: list[Arm]
    labels: Labels | None = None

    def divergence(self) -> Float32[np.ndarray, " T"] | None:
        """KL(untouched || edited) in nats at each step, moves that do nothing taken together; None without an edit."""
        if len(self.arms) == 1:
            return None
        clean, edited = (np.log(np.maximum(arm.probabilities, 1e-12)) for arm in self.arms)
        return (np.exp(clean) * (clean - edited)).sum(1)

    def limits(self, source: str) -> list[tuple[float, float]]:
        """Range of each shown unit over the episode and both arms, for one scale: from 0, or from below it."""
        maps = np.stack([arm.maps[source] for arm in self.arms])
        low, high = maps.min((0, 1, 3, 4)), maps.max((0, 1, 3, 4))
        return [(min(0.0, float(a)), float(b)) for a, b in zip(low, high, strict=True)]


def check_shown(agent: TappedAgent, sae: SAEBase | None, shown: Shown) -> None:
    """Raise ValueError for a source that is no map, or for units that it does not have."""
    for source, wanted in shown.items():
        if source == LATENTS:
            if sae is None:
                raise ValueError(f"{LATENTS!r} stands for an autoencoder's latents: give the autoencoder's file too")
            tap, count = sae.tap, sae.num_latents
        else:
            if source not in agent.taps:
                maps = ", ".join(name for name, shape in agent.taps.items() if len(shape) == 3)
                raise ValueError(f"show: {agent.architecture} has no tap {source!r}: choose among {maps}")
            tap, count = source, agent.taps[source][0] if agent.taps[source] else 1
        if len(agent.taps[tap]) != 3:
            maps = ", ".join(name for name, shape in agent.taps.items() if len(shape) == 3)
            raise ValueError(f"{source} has no map to show, as it has no positions: choose among {maps}")
        beyond = [unit for unit in wanted if not 0 <= unit < count] if isinstance(wanted, list) else []
        if beyond or (isinstance(wanted, int) and not 0 < wanted <= count):
            raise ValueError(f"{source} has {count} units, numbered from 0: {beyond or wanted} is beyond them")


@torch.no_grad()
def observe_episode(
    agent: TappedAgent,
    replay: Replay,
    shown: Shown,
    *,
    edits: Sequence[Edit] = (),
    sae: SAEBase | None = None,
    labels: Labels | None = None,
    precision: Precision = DEFAULT_PRECISION,
) -> ObservedEpisode:
    """Run the agent, and again with edits if there are any, on the frames of an episode.

    Args:
        agent: on the device where its parameters are.
        replay: the episode.
        shown: which units of which taps, or of the autoencoder.
        edits: of the second arm.
        sae: whose latents `shown` may ask for; they are of the untouched agent's activation in both arms.
        labels: of the episode's states.
        precision: of the passes.

    Raises:
        ValueError: what `check_shown` finds.
    """
    check_shown(agent, sae, shown)
    clean = _run(agent, replay, shown, (), sae, precision)
    units = {
        source: wanted if isinstance(wanted, list) else most_varying(clean[2][source], wanted)
        for source, wanted in shown.items()
    }
    passes = {"untouched": clean}
    if edits:
        edited = _run(agent, replay, shown, edits, None, precision)
        passes["edited"] = (*edited[:2], clean[2] | edited[2])
    arms = [
        Arm(name, _moves(logits), values.numpy(), {source: maps[source][:, units[source]].numpy() for source in shown})
        for name, (logits, values, maps) in passes.items()
    ]
    return ObservedEpisode(replay, units, arms, labels)


def most_varying(maps: Tensor, count: int) -> list[int]:
    """The units of maps [T C H W] whose activation varies most over steps and positions, most first."""
    return maps.var((0, 2, 3), unbiased=False).argsort(descending=True, stable=True)[:count].tolist()


def _run(
    agent: TappedAgent,
    replay: Replay,
    shown: Shown,
    edits: Sequence[Edit],
    sae: SAEBase | None,
    precision: Precision,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits [T A], values [T] and each source's maps [T C H W], on the CPU in float32."""
    device = next(agent.parameters()).device
    taps = [source for source in shown if source != LATENTS]
    record = tuple(dict.fromkeys([*taps, sae.tap] if sae is not None and LATENTS in shown else taps))
    logits, values, maps = [], [], {source: [] for source in taps}  # type: ignore[var-annotated]
    modules = [agent, *(edit for _, edit in edits), *([sae] if sae is not None else [])]
    with evaluating(*modules):
        for frames in torch.from_numpy(replay.frames).split(_BATCH):
            with autocast(precision, device):
                output = agent.forward(frames.to(device), record=record, edits=edits)
            assert output.logits is not None
            assert output.value is not None
            logits.append(output.logits.float().cpu())
            values.append(output.value.float().cpu())
            for source in taps:
                maps[source].append(output.activations[source].float().cpu())
            if sae is not None and LATENTS in shown:
                maps.setdefault(LATENTS, []).append(sae.encode(output.activations[sae.tap]).float().cpu())
    return torch.cat(logits), torch.cat(values), {source: torch.cat(parts) for source, parts in maps.items()}


def _moves(logits: Tensor) -> np.ndarray:
    probabilities = logits.softmax(-1)
    moves, others = probabilities.tensor_split([len(ACTION_STEPS)], 1)
    return torch.cat([moves, others.sum(1, keepdim=True)], 1).numpy()
