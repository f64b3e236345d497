"""What became of one or several agents on the same levels, as metrics with intervals."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from interpretability.episodes import Episodes
from interpretability.statistics import Interval, bootstrap_interval, crossed_bootstrap


def optimality(played: Episodes, oracle: Episodes) -> Float[np.ndarray, " L"]:
    """The oracle's steps / the agent's steps on each level: 1 is as quick, .5 takes twice as long.

    NaN where either did not solve the level. Being over solved levels only, read a mean of it beside the solved
    fraction: an agent that gives up on long ways looks quick.
    """
    both = played.solved & oracle.solved
    return np.where(both, oracle.lengths / played.lengths, np.nan)


def outcome_intervals(
    runs: Sequence[Episodes], oracle: Episodes | None = None, strata: Int[np.ndarray, " L"] | None = None
) -> dict[str, Interval]:
    """`return`, `solved`, `episode_length`, and `optimality` where an oracle has played; of several agents the means.

    For one agent bounds are over levels. For several they are over agents and levels (`crossed_bootstrap`), and there
    is `return_iqm`, the interquartile mean over agents of their mean returns.

    Args:
        runs: the episodes of each agent, all on the same levels.
        oracle: its episodes on them.
        strata: of the levels, for several agents.
    """
    intervals: dict[str, Interval] = {}
    if len(runs) == 1:
        intervals |= runs[0].intervals()
    else:
        returns = np.stack([run.returns for run in runs])
        intervals["return"] = crossed_bootstrap(returns, strata)
        intervals["return_iqm"] = crossed_bootstrap(returns, strata, trim=0.25)
        intervals["solved"] = crossed_bootstrap(np.stack([run.solved for run in runs]), strata)
        intervals["episode_length"] = crossed_bootstrap(np.stack([run.lengths for run in runs]), strata)
    if oracle is not None:
        ratios = np.stack([optimality(run, oracle) for run in runs])
        if len(runs) > 1:
            intervals["optimality"] = crossed_bootstrap(ratios, strata)
        else:
            known = ratios[np.isfinite(ratios)]
            intervals["optimality"] = bootstrap_interval(known) if len(known) else Interval(np.nan, np.nan, np.nan)
    return intervals
