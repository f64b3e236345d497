"""What sets of units do together: synergy of pairs, and groups of co-active units beside random ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from interpretability.ablations import AblationKind
from interpretability.feature_groups import co_active_groups
from interpretability.statistics import Interval, bootstrap_interval
from studies.ablation_figures import draw_groups, draw_pairs
from studies.ablation_trials import KEYS, AblationTrials, Levels, Outcomes
from studies.report import Cell, Table


@dataclass(frozen=True)
class SetReport:
    """Numbers by their key in the summary, a table and a figure."""

    intervals: dict[str, Interval]
    table: Table
    figure: Figure


def pair_synergy(
    trials: AblationTrials,
    kind: AblationKind,
    order: Sequence[int],
    top_k: int,
    random_pairs: int,
    singles: Outcomes,
    clean: Outcomes,
    levels: Levels,
) -> SetReport:
    """Effect of taking two units away, less the sum of their single effects, on each level.

    Args:
        trials: plays.
        kind: of ablation.
        order: units, chosen on other levels.
        top_k: all pairs of the first so many.
        random_pairs: drawn among the others that are sometimes active, as a control; fewer where there are not so many.
        singles: outcomes of every unit alone, by the same ablation on the same levels.
        clean: of none.
        levels: what is played.
    """
    chosen = sorted(order[:top_k])
    pairs = list(combinations(chosen, 2))
    alive = set(_active(trials.co_activity))
    others = list(combinations(sorted(alive.intersection(order[top_k:])), 2))
    rng = np.random.default_rng([trials.seed, 1])
    drawn = [others[row] for row in rng.permutation(len(others))[:random_pairs]]
    together, single = trials.without([*pairs, *drawn], kind, levels).effects(clean), singles.effects(clean)
    ones, twos = np.array([*pairs, *drawn]).T
    found: dict[str, Interval] = {}
    shown: dict[str, dict[tuple[int, int], Interval]] = {}
    rows: list[list[Cell]] = []
    for name, values in together.items():
        synergy = values - single[name][ones] - single[name][twos]
        key = f"{KEYS[name].split('_')[0]}_synergy"
        found[f"ablation/pairs/{key}"] = _interval(synergy[: len(pairs)].mean(0), trials)
        if drawn:
            found[f"ablation/random_pairs/{key}"] = _interval(synergy[len(pairs) :].mean(0), trials)
        each = [_interval(row, trials) for row in synergy]
        shown[f"synergy: {name}"] = dict(zip(pairs, each, strict=False))
        for number, (pair, interval) in enumerate(zip([*pairs, *drawn], each, strict=True)):
            alone = [float(single[name][unit].mean()) for unit in pair]
            what = "first units" if number < len(pairs) else "random"
            rows.append([what, name, *pair, *alone, float(values[number].mean()), *interval])
    columns = ["pair", "effect", "one", "other", "of one", "of other", "of both", "synergy", "low", "high"]
    title = f"{trials.tap}, {kind} ablation of pairs of the {top_k} units that come first on validation mazes"
    return SetReport(found, Table(columns, rows, printed=False), draw_pairs(shown, chosen, title))


def group_effects(
    trials: AblationTrials, kind: AblationKind, groups: int, random_sets: int, clean: Outcomes, levels: Levels
) -> SetReport | None:
    """Co-active groups, each beside random sets of as many other units that are sometimes active (of all such units,
    where too few are others).

    Args:
        trials: plays; groups are of the frames that its maps are of.
        kind: of ablation.
        groups: at most.
        random_sets: drawn for each.
        clean: outcomes of no ablation.
        levels: what is played.

    Returns:
        None where no units go together.
    """
    alive = _active(trials.co_activity)
    found_groups = [group.members for group in co_active_groups(trials.co_activity, groups)] if len(alive) > 1 else []
    if not found_groups:
        return None
    rng = np.random.default_rng([trials.seed, 2])
    sets: list[list[int]] = []
    for members in found_groups:
        others = sorted(set(alive) - set(members))
        pool = others if len(others) >= len(members) else alive
        sets += [members, *(rng.permutation(pool)[: len(members)].tolist() for _ in range(random_sets))]
    effects = trials.without(sets, kind, levels).effects(clean)
    found: dict[str, Interval] = {}
    shown: dict[str, dict[str, list[Interval]]] = {}
    rows: list[list[Cell]] = []
    for name, values in effects.items():
        by_group = values.reshape(len(found_groups), 1 + random_sets, -1)
        arms = {"": by_group[:, 0], "random_": by_group[:, 1:].mean(1)}
        arms["minus_random_"] = arms[""] - arms["random_"]
        each = {arm: [_interval(row, trials) for row in of_groups] for arm, of_groups in arms.items()}
        for arm, of_groups in arms.items():
            found[f"ablation/groups/{arm}{KEYS[name]}"] = _interval(of_groups.mean(0), trials)
        shown[name] = {"co-active group": each[""], "random sets of its size": each["random_"]}
        for number, members in enumerate(found_groups):
            cells = [cell for intervals in each.values() for cell in intervals[number]]
            rows.append([number, " ".join(map(str, members)), name, *cells])
    columns = ["group", "units", "effect", "of the group", "low", "high", "of random sets", "low", "high",
               "difference", "low", "high"]  # fmt: skip
    names = [f"{number}:\n{len(members)} units" for number, members in enumerate(found_groups)]
    title = f"{trials.tap}, {kind} ablation of groups of co-active units"
    return SetReport(found, Table(columns, rows), draw_groups(shown, names, title))


def _active(phi: Float[np.ndarray, "U U"]) -> list[int]:
    """Units that are sometimes active, and sometimes not."""
    return np.flatnonzero(np.isfinite(np.diagonal(phi))).tolist()


def _interval(values: np.ndarray, trials: AblationTrials) -> Interval:
    return bootstrap_interval(values, seed=trials.seed)
