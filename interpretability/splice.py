"""What an agent loses when an autoencoder's reconstruction replaces a tap, between untouched and ablated play."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Required, TypedDict, Unpack

import numpy as np
from torch import nn

from environments import EnvironmentSettings
from interpretability.ablations import ZeroAblation, mean_ablation
from interpretability.episodes import GAME_TIME_OUT, Episodes, evaluating, play_episodes
from interpretability.kept import Kept, edit_hashes
from interpretability.policy_comparison import PolicyComparison, PolicyComparisons
from interpretability.statistics import (
    Interval,
    fraction_recovered,
    join_metrics,
    paired_bootstrap,
    ratio_of_means,
)
from networks.precision import DEFAULT_PRECISION, Precision
from networks.taps import Edit, TappedNetwork
from networks.weights import hash_tensors

MEAN_LEVELS, MEAN_STEPS = 64, 200  # of the play whose mean the ablation puts in
_PREFIX = {"clean": "clean_", "spliced": "", "mean_ablated": "mean_ablation_", "zero_ablated": "zero_ablation_"}


@dataclass(frozen=True)
class SpliceResult:
    """The four arms, played on the same levels with the same action noise, and the policies compared on clean play.

    The ablated arms may have played the first of the levels only.

    Attributes:
        clean, spliced, mean_ablated, zero_ablated: the episodes of each arm.
        comparisons: `spliced`, `mean_ablated` and `zero_ablated` against the clean policy on frames of the clean arm.
    """

    clean: Episodes
    spliced: Episodes
    mean_ablated: Episodes
    zero_ablated: Episodes
    comparisons: Mapping[str, PolicyComparison]

    def metrics(self) -> dict[str, float]:
        """The `splice/` metrics, each with `_low` and `_high` 95 % bounds over levels: Wilson's for the solved
        fractions, else bootstrapped.

        - `clean_return`, `return`, `mean_ablation_return`, `zero_ablation_return`: mean return of each arm
        - `clean_solved`, `solved`, ...: fraction of levels solved, likewise
        - `return_ratio`: spliced / clean
        - `recovered`: (spliced - mean-ablated) / (clean - mean-ablated), of the returns on levels that all arms played
        - `action_agreement`: fraction of frames of clean play with the same most likely action
        - `kl`: mean over frames of clean play of KL(clean || spliced), in nats
        - `value_error`: mean over frames of clean play of |spliced value - clean value|, in the value head's unit; a
          head that was never trained has one too, and it means no more than the head does; without a value head
          there is none
        - `mean_ablation_...` and `zero_ablation_...` of the last three
        - `kl_recovered`: 1 - kl / mean-ablated kl
        - `levels`, `ablated_levels`: how many levels were played, by all arms and by the ablated ones (without bounds)

        A ratio over zero is NaN or infinite.
        """
        arms = {name: getattr(self, name) for name in _PREFIX}
        intervals: dict[str, Interval] = {}
        for name, played in arms.items():
            outcomes = played.intervals()
            intervals |= {f"{_PREFIX[name]}{outcome}": outcomes[outcome] for outcome in ("return", "solved")}
        for name, comparison in self.comparisons.items():
            intervals |= {f"{_PREFIX[name]}{key}": interval for key, interval in comparison.intervals().items()}
        clean, spliced, ablated = self.clean.returns, self.spliced.returns, self.mean_ablated.returns
        kls = [self.comparisons[name].kl for name in ("spliced", "mean_ablated")]
        intervals["return_ratio"] = paired_bootstrap(ratio_of_means, [spliced, clean])
        shared = len(ablated)
        intervals["recovered"] = paired_bootstrap(fraction_recovered, [clean[:shared], spliced[:shared], ablated])
        intervals["kl_recovered"] = paired_bootstrap(_kept, kls)
        metrics = join_metrics({f"splice/{name}": interval for name, interval in intervals.items()})
        return metrics | {"splice/levels": float(len(clean)), "splice/ablated_levels": float(shared)}


def _kept(spliced: np.ndarray, ablated: np.ndarray, axis: int = -1) -> np.ndarray:
    return 1 - ratio_of_means(spliced, ablated, axis)


def check_ablated_levels(ablated_levels: int | None, num_levels: int) -> None:
    """Raise ValueError if of so many levels the ablated arms cannot play the first `ablated_levels`."""
    if ablated_levels is not None and not 1 <= ablated_levels <= num_levels:
        raise ValueError(f"ablated_levels is {ablated_levels}: choose 1 to num_levels, {num_levels}, or null for all")


class SpliceOptions(TypedDict, total=False):
    """What `evaluate_splices` takes by keyword, the environment's settings at the least."""

    settings: Required[EnvironmentSettings]
    greedy: bool
    seed: int
    num_environments: int
    max_steps: int
    precision: Precision
    compare_every: int
    ablated_levels: int | None
    keep_dir: str | Path | None
    progress: bool


def evaluate_splice(
    agent: TappedNetwork, tap: str, sae: nn.Module, levels: Sequence[int], **options: Unpack[SpliceOptions]
) -> SpliceResult:
    """`evaluate_splices` for one autoencoder, or for any other edit of a tap."""
    return evaluate_splices(agent, {"": (tap, sae)}, levels, **options)[""]


def evaluate_splices(
    agent: TappedNetwork,
    saes: Mapping[str, Edit],
    levels: Sequence[int],
    *,
    settings: EnvironmentSettings,
    greedy: bool = False,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = GAME_TIME_OUT,
    precision: Precision = DEFAULT_PRECISION,
    compare_every: int = 4,
    ablated_levels: int | None = None,
    keep_dir: str | Path | None = None,
    progress: bool = False,
) -> dict[str, SpliceResult]:
    """Play the same levels with the tap untouched, spliced, mean-ablated and zero-ablated.

    The clean arm is played once for all autoencoders, the ablated ones once for each tap. All arms share the action
    noise (`play_episodes`) and play to the game's own end. Ablated agents mostly run into the time-out of 1000 steps,
    where an untouched one plays some tens: though a policy cut off from the frame is computed once, their arms take
    most of the time, and `ablated_levels` can be few, as their returns are far from the others'. The mean that the
    ablation puts in is over untouched play of up to 64 of the levels, 200 steps each (`mean_ablation`). Policies are
    compared on every `compare_every`-th step of the clean arm.

    Args:
        agent: plays on the device where its parameters are.
        saes: by name, a tap and the edit that goes there; usually an autoencoder. On the agent's device.
        levels: level seeds, held out from the autoencoders' training.
        settings, greedy, seed, num_environments, max_steps, precision: as for `play_episodes`; `max_steps` below the
            game's time-out counts longer episodes as unsolved in every arm.
        compare_every: step between compared frames of a level.
        ablated_levels: the first so many are played by the ablated arms; None for all.
        keep_dir: folder in which every arm is kept that was played to the end, until all are: if something interrupts,
            the same call goes on from there. None keeps nothing.
        progress: show a progress bar per arm on stderr.

    Returns:
        What was found of each, by name.

    Raises:
        ValueError: no such tap, levels that cannot be played, or more ablated levels than levels.
    """
    taps = list(dict.fromkeys(tap for tap, _ in saes.values()))
    agent.check_taps(taps)
    levels = list(levels)
    check_ablated_levels(ablated_levels, len(levels))

    def title(arm: str) -> str | None:
        return f"play {arm}".rstrip() if progress else None

    spliced: dict[str, list[Edit]] = {f"spliced {name}": [edit] for name, edit in saes.items()}
    ablated: dict[str, list[Edit]] = {}
    for tap in taps:
        mean = mean_ablation(
            agent,
            tap,
            levels[:MEAN_LEVELS],
            settings=settings,
            seed=seed,
            num_environments=num_environments,
            max_steps=min(MEAN_STEPS, max_steps),
            precision=precision,
            progress=title(f"for the mean of {tap}"),
        )
        ablated |= {f"{tap} mean-ablated": [(tap, mean)], f"{tap} zero-ablated": [(tap, ZeroAblation())]}
    comparisons = PolicyComparisons(agent, spliced | ablated, levels, precision, compare_every)
    play = partial(
        play_episodes,
        agent,
        settings=settings,
        greedy=greedy,
        seed=seed,
        num_environments=num_environments,
        max_steps=max_steps,
        precision=precision,
    )
    kept = None
    if keep_dir is not None:
        description = {
            "agent": [agent.architecture, hash_tensors(agent.state_dict())],
            "arms": {arm: edit_hashes(edits) for arm, edits in (spliced | ablated).items()},
            "play": [levels, ablated_levels, settings.as_dict(), greedy, seed, num_environments, max_steps, precision],
            "compare_every": compare_every,
        }
        kept = Kept(keep_dir, description)

    def finished(name: str, arm: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return arm() if kept is None else kept.arrays(name, arm)

    def clean_arm() -> dict[str, np.ndarray]:
        return vars(play(levels, observer=comparisons, progress=title("clean"))) | comparisons.arrays()

    def edited(name: str, levels: Sequence[int], edits: Sequence[Edit]) -> Episodes:
        return Episodes(**finished(name, lambda: vars(play(levels, edits=edits, progress=title(name)))))

    with evaluating(*(sae for _, sae in saes.values())):
        clean = Episodes(**comparisons.take(finished("clean", clean_arm)))
        played = {name: edited(name, levels, edits) for name, edits in spliced.items()}
        played |= {name: edited(name, levels[:ablated_levels], edits) for name, edits in ablated.items()}
    if kept is not None:
        kept.forget()
    results = {}
    for name, (tap, _) in saes.items():
        arms = {
            "spliced": f"spliced {name}",
            "mean_ablated": f"{tap} mean-ablated",
            "zero_ablated": f"{tap} zero-ablated",
        }
        results[name] = SpliceResult(
            clean=clean,
            comparisons={arm: comparisons.of[key] for arm, key in arms.items()},
            **{arm: played[key] for arm, key in arms.items()},
        )
    return results
