"""What an agent loses when an autoencoder's reconstruction replaces a tap, between untouched and ablated play."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from environments import EnvironmentSettings
from interpretability.episodes import GAME_TIME_OUT, Episodes, PlayedStep, evaluating, play_episodes
from interpretability.statistics import (
    bootstrap_interval,
    fraction_recovered,
    join_metrics,
    paired_bootstrap,
    ratio_of_means,
)
from networks.precision import Precision, autocast
from networks.taps import Edit, TappedAgent


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
    agent: TappedAgent,
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
    play_episodes(
        agent,
        levels,
        settings=settings,
        seed=seed,
        num_environments=num_environments,
        max_steps=max_steps,
        precision=precision,
        observer=PolicyComparison(agent, [(tap, mean)], levels, precision),
        progress=progress,
    )
    return mean.ablation()


class PolicyComparison:
    """Observer: how an edit changes the policy on the frames of the play that it watches.

    Args:
        agent, edits: the edited agent; the watched play is without the edits.
        levels: every level of the play.
        precision: of the passes; that of the play.
        every: compare on every so-many-th step of a level.

    Attributes:
        frames: frames compared, by level.
        agreed: frames on which both policies have the same most likely action, by level.
        kl: sum over frames of KL(watched || edited) in nats, by level.
    """

    frames: Int[np.ndarray, " L"]
    agreed: Int[np.ndarray, " L"]
    kl: Float64[np.ndarray, " L"]

    def __init__(
        self,
        agent: TappedAgent,
        edits: Sequence[Edit],
        levels: Sequence[int],
        precision: Precision,
        every: int = 1,
    ) -> None:
        self._agent, self._edits, self._precision, self._every = agent, tuple(edits), precision, every
        self._device = next(agent.parameters()).device
        self._row = {level: row for row, level in enumerate(levels)}
        self.frames = np.zeros(len(levels), dtype=np.int64)
        self.agreed = np.zeros(len(levels), dtype=np.int64)
        self.kl = np.zeros(len(levels))

    def __call__(self, step: PlayedStep) -> None:
        chosen = np.flatnonzero(step.steps % self._every == 0)
        if len(chosen) == 0:
            return
        frames = torch.from_numpy(step.frames[chosen]).to(self._device)
        with autocast(self._precision, self._device):
            logits = self._agent(frames, edits=self._edits).logits
        assert logits is not None
        edited = logits.cpu().double().log_softmax(-1)
        clean = step.logits[chosen].double().log_softmax(-1)
        rows = [self._row[level] for level in step.levels[chosen].tolist()]
        self.frames[rows] += 1  # a step shows a level once
        self.agreed[rows] += (edited.argmax(-1) == clean.argmax(-1)).numpy()
        self.kl[rows] += (clean.exp() * (clean - edited)).sum(-1).numpy()


@dataclass(frozen=True)
class SpliceResult:
    """The four arms, played on the same levels with the same action noise, and the policies compared on clean play.

    Attributes:
        clean, spliced, mean_ablated, zero_ablated: the episodes of each arm.
        comparison: spliced against clean policy on frames of the clean arm.
    """

    clean: Episodes
    spliced: Episodes
    mean_ablated: Episodes
    zero_ablated: Episodes
    comparison: PolicyComparison

    def metrics(self) -> dict[str, float]:
        """The `splice/` metrics, each with `_low` and `_high` 95 % bounds, bootstrapped over levels.

        - `clean_return`, `return`, `mean_ablation_return`, `zero_ablation_return`: mean return of each arm
        - `return_ratio`: spliced / clean
        - `recovered`: (spliced - mean-ablated) / (clean - mean-ablated)
        - `action_agreement`: fraction of frames of clean play with the same most likely action
        - `kl`: mean over frames of clean play of KL(clean || spliced), in nats
        - `levels`: how many levels were played (without bounds)

        A ratio over a return of zero is NaN or infinite.
        """
        clean, spliced, ablated = self.clean.returns, self.spliced.returns, self.mean_ablated.returns
        frames = self.comparison.frames
        intervals = {
            "clean_return": bootstrap_interval(clean),
            "return": bootstrap_interval(spliced),
            "mean_ablation_return": bootstrap_interval(ablated),
            "zero_ablation_return": bootstrap_interval(self.zero_ablated.returns),
            "return_ratio": paired_bootstrap(ratio_of_means, [spliced, clean]),
            "recovered": paired_bootstrap(fraction_recovered, [clean, spliced, ablated]),
            "action_agreement": paired_bootstrap(ratio_of_means, [self.comparison.agreed, frames]),
            "kl": paired_bootstrap(ratio_of_means, [self.comparison.kl, frames]),
        }
        metrics = join_metrics({f"splice/{name}": interval for name, interval in intervals.items()})
        return metrics | {"splice/levels": float(len(clean))}


def evaluate_splice(
    agent: TappedAgent,
    tap: str,
    sae: nn.Module,
    levels: Sequence[int],
    *,
    settings: EnvironmentSettings,
    greedy: bool = False,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = GAME_TIME_OUT,
    precision: Precision = "bf16",
    compare_every: int = 4,
    progress: bool = False,
) -> SpliceResult:
    """Play the same levels with the tap untouched, spliced, mean-ablated and zero-ablated.

    All arms share the action noise (`play_episodes`) and play to the game's own end. Ablated agents mostly run into
    the time-out, yet cost little: a policy cut off from the frame is computed once. The mean that the ablation puts
    in, and the comparison of policies, are taken on every `compare_every`-th step of the clean arm.

    Args:
        agent: plays on the device where its parameters are.
        tap: where the edits go.
        sae: any edit of that tap; usually the autoencoder. On the agent's device.
        levels: level seeds, held out from the autoencoder's training.
        settings, greedy, seed, num_environments, max_steps, precision: as for `play_episodes`; `max_steps` below the
            game's time-out counts longer episodes as unsolved in every arm.
        compare_every: step between compared frames of a level.
        progress: show a progress bar per arm on stderr.

    Raises:
        ValueError: no such tap, or levels that cannot be played.
    """
    agent.check_taps([tap])
    levels = list(levels)
    mean = TapMean()
    comparison = PolicyComparison(agent, [(tap, mean), (tap, sae)], levels, precision, compare_every)
    play = partial(
        play_episodes,
        agent,
        levels,
        settings=settings,
        greedy=greedy,
        seed=seed,
        num_environments=num_environments,
        max_steps=max_steps,
        precision=precision,
    )

    def title(arm: str) -> str | None:
        return f"play {arm}" if progress else None

    with evaluating(sae):
        clean = play(observer=comparison, progress=title("clean"))
        spliced = play(edits=[(tap, sae)], progress=title("spliced"))
    ablated = play(edits=[(tap, mean.ablation())], progress=title("mean-ablated"))
    zeroed = play(edits=[(tap, ZeroAblation())], progress=title("zero-ablated"))
    return SpliceResult(clean, spliced, ablated, zeroed, comparison)
