"""Edits that take what a tap, or some units of it, say about the frame away: zeros, the mean over play, or what they
say of another frame, in its place.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from environments import EnvironmentSettings
from interpretability.episodes import PlayedStep, play_episodes
from interpretability.follower import Follower
from interpretability.row_edits import UnitEdit
from networks.precision import DEFAULT_PRECISION, Precision
from networks.sae_base import SAEBase
from networks.taps import TappedNetwork

AblationKind = Literal["zero", "mean", "resample"]


class ZeroAblation(nn.Module):
    """Edit: zeros in place of the tap's activation."""

    def forward(self, acts: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        return torch.zeros_like(acts)


class MeanAblation(nn.Module):
    """Edit: a fixed activation, usually the mean over frames at each channel and position, in place of the tap's.

    Args:
        mean: of one input's shape.
    """

    mean: Tensor

    def __init__(self, mean: Float[Tensor, " *rest"]) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    def forward(self, acts: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        return self.mean.to(acts.dtype).expand_as(acts)


class TapMean(nn.Module):
    """Edit that changes nothing and averages what passes, per channel and position."""

    def __init__(self) -> None:
        super().__init__()
        self._sum: Tensor | None = None
        self._count = 0
        self._device = torch.device("cpu")

    def forward(self, acts: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        total = acts.float().sum(0).cpu().double()
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(acts)
        self._device = acts.device
        return acts

    def ablation(self) -> MeanAblation:
        """The edit that puts this mean in, on the device of what has passed.

        Raises:
            ValueError: nothing has passed yet.
        """
        if self._sum is None:
            raise ValueError("no activation has passed this tap yet: run the agent with this edit first")
        return MeanAblation((self._sum / self._count).float()).to(self._device)


def mean_ablation(
    agent: TappedNetwork,
    tap: str,
    levels: Sequence[int],
    *,
    settings: EnvironmentSettings,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 200,
    precision: Precision = DEFAULT_PRECISION,
    progress: str | None = None,
) -> MeanAblation:
    """The edit that puts in a tap's mean over untouched sampled play, at each channel and position.

    Args:
        agent, levels, settings, seed, num_environments, precision, progress: as for `play_episodes`.
        tap: whose mean.
        max_steps: the mean is over the first so many steps of each level.

    Raises:
        ValueError: no such tap, or levels that cannot be played.
    """
    mean = TapMean()
    follower = Follower(agent, precision, edits=[(tap, mean)])

    def look(step: PlayedStep) -> None:
        follower(step)

    play_episodes(
        agent,
        levels,
        settings=settings,
        seed=seed,
        num_environments=num_environments,
        max_steps=max_steps,
        precision=precision,
        observer=look,
        progress=progress,
    )
    return mean.ablation()


class UnitAblation(UnitEdit):
    """Edit by row: a set of units says something that does not depend on the frame.

    Args:
        masks: which units each trial takes away.
        replacements: activations of all units; their own of one of them, drawn anew for each row and pass, stand in
            for those taken away. One alone is a fixed replacement.
        sae: see `UnitEdit`.
        seed: of the draws.
    """

    masks: Tensor
    replacements: Tensor
    drawn: Tensor

    def __init__(
        self,
        masks: Bool[Tensor, "T U"],
        replacements: Float[Tensor, "F U *HW"],
        sae: SAEBase | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(sae)
        self.register_buffer("masks", masks)
        self.register_buffer("replacements", replacements)
        self.register_buffer("drawn", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def num_trials(self) -> int:
        """T."""
        return len(self.masks)

    def assign(self, trials: Int64[Tensor, " B"]) -> None:
        """Say which trial each row of the next batch undergoes, and draw."""
        super().assign(trials)
        drawn = torch.randint(len(self.replacements), (len(trials),), generator=self._generator)
        self.drawn = drawn.to(self.replacements.device)

    def changed(self, units: Float[Tensor, "B U *HW"]) -> Float[Tensor, "B U *HW"]:
        """The units of each row after its trial."""
        mask = self.masks[self.trials].view(*units.shape[:2], *[1] * (units.ndim - 2))
        return torch.where(mask, self.replacements[self.drawn].to(units.dtype), units)


def replacements(kind: AblationKind, maps: Float[Tensor, "F U *HW"]) -> Float[Tensor, "F2 U *HW"]:
    """What `UnitAblation` puts in: zeros, the mean at each position, or the units' activations on other frames.

    Args:
        kind: which.
        maps: of all units on frames of play (see `unit_maps`).
    """
    made: dict[AblationKind, Tensor] = {
        "zero": torch.zeros_like(maps[:1]),
        "mean": maps.mean(0, keepdim=True),
        "resample": maps,
    }
    return made[kind]
