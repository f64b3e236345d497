"""Frames of untouched play that the replacement study fits on and compares on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from interpretability.episodes import PlayedStep, evaluating
from interpretability.label_code import LabelCode
from interpretability.patching import record_taps
from interpretability.state_edits import Seen, StateEdit
from interpretability.statistics import Interval, bootstrap_of_sums, paired_bootstrap, ratio_of_means
from networks import Edit, Precision, TappedAgent, autocast

_BATCH: Final = 128


@dataclass(frozen=True)
class Recorded:
    """Frames of untouched play.

    Attributes:
        frames: what the agent saw.
        states: the game's, of each.
        logits: what it made of it.
        rows: which of the levels each is of.
        acts: of the taps.
    """

    frames: UInt8[Tensor, "N 64 64 3"]
    states: list[bytes]
    logits: Float[Tensor, "N A"]
    rows: Int[np.ndarray, " N"]
    acts: Mapping[str, Float[Tensor, "N C *HW"]]


class Recorder:
    """Observer of untouched play: keeps every so-many-th step of each level, with states and activations.

    Args:
        taps: to record.
        levels: all that are played.
        every: steps from one recorded frame of a level to the next.

    Attributes:
        seen: edits to play with, which change nothing.
    """

    def __init__(self, taps: Sequence[str], levels: Sequence[int], every: int) -> None:
        self.seen = {tap: Seen() for tap in taps}
        self._row, self._every = {level: row for row, level in enumerate(levels)}, every
        self._frames: list[Tensor] = []
        self._states: list[bytes] = []
        self._logits: list[Tensor] = []
        self._rows: list[int] = []
        self._acts: dict[str, list[Tensor]] = {tap: [] for tap in taps}

    def __call__(self, step: PlayedStep) -> None:
        chosen = np.flatnonzero(step.steps % self._every == 0)
        if len(chosen) == 0:
            return
        self._frames.append(torch.from_numpy(step.frames[chosen].copy()))
        self._logits.append(step.logits[chosen])
        self._rows += [self._row[level] for level in step.levels[chosen].tolist()]
        states = next(iter(self.seen.values())).states
        self._states += [states[row] for row in chosen]
        for tap, seen in self.seen.items():
            self._acts[tap].append(seen.acts[chosen].float().cpu())

    def recorded(self) -> Recorded:
        """What was kept."""
        acts = {tap: torch.cat(parts).clone() for tap, parts in self._acts.items()}
        logits = torch.cat(self._logits).clone()
        return Recorded(torch.cat(self._frames), self._states, logits, np.array(self._rows), acts)


def acts_of(
    agent: TappedAgent, tap: str, frames: UInt8[Tensor, "N 64 64 3"], precision: Precision
) -> Float[Tensor, "N C *HW"]:
    """What a tap makes of recorded frames."""
    parts = [record_taps(agent, part, [tap], precision)[tap].float().cpu() for part in frames.split(_BATCH)]
    return torch.cat(parts).clone()


@torch.no_grad()
def write_all(code: LabelCode, states: Sequence[bytes]) -> Float[Tensor, "N C *HW"]:
    """The activation that a code writes for recorded states."""
    parts = [code.of_states(states[start : start + _BATCH]).cpu() for start in range(0, len(states), _BATCH)]
    return torch.cat(parts)


def explained_variance(
    written: Float[Tensor, "N C *HW"], acts: Float[Tensor, "N C *HW"], rows: Int[np.ndarray, " N"]
) -> Interval:
    """1 - squared error / squared distance from each position's mean, bounds over levels."""
    centred = (acts - acts.mean(0)).flatten(1).square().sum(1).double().numpy()
    errors = (written - acts).flatten(1).square().sum(1).double().numpy()
    sums = np.stack([np.bincount(rows, weights=each) for each in (errors, centred)], 1)
    return bootstrap_of_sums(sums, lambda of: 1 - of[:, 0] / of[:, 1])


def compare_policies(agent: TappedAgent, edit: Edit, recorded: Recorded, precision: Precision) -> dict[str, Interval]:
    """`kl` and `action_agreement` of the edited policy with the untouched one on its own play, bounds over levels."""
    device = next(agent.parameters()).device
    _, module = edit
    logits = []
    with evaluating(agent, module), torch.inference_mode(), autocast(precision, device):
        for start in range(0, len(recorded.states), _BATCH):
            part = slice(start, start + _BATCH)
            if isinstance(module, StateEdit):
                module.see(recorded.states[part])
            found = agent.forward(recorded.frames[part].to(device), edits=[edit]).logits
            assert found is not None
            logits.append(found.float().cpu())
    clean, other = recorded.logits.double().log_softmax(1), torch.cat(logits).double().log_softmax(1)
    values = {
        "kl": (clean.exp() * (clean - other)).sum(1).numpy(),
        "action_agreement": (clean.argmax(1) == other.argmax(1)).double().numpy(),
    }
    counts = np.bincount(recorded.rows)
    return {
        name: paired_bootstrap(ratio_of_means, [np.bincount(recorded.rows, weights=each), counts])
        for name, each in values.items()
    }
