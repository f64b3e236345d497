"""Edits that take what a tap says about the frame away: zeros, or its mean over play, in its place."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from environments import EnvironmentSettings
from interpretability.episodes import PlayedStep, play_episodes
from interpretability.follower import Follower
from networks.precision import Precision
from networks.taps import TappedNetwork


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
    precision: Precision = "bf16",
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
