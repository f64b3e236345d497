"""Units that go together: clusters of those active at the same positions, and non-negative factors of all of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from interpretability.component_codes import non_negative_parts


class Group(NamedTuple):
    """Units that go together.

    Attributes:
        weights: of every unit, none below 0, of length 1: a direction over units.
        members: those that carry the group, strongest first.
        strength: what the group is ordered by: mean correlation within a cluster, or the share of a factor.
    """

    weights: Float[Tensor, " U"]
    members: list[int]
    strength: float


def co_active_groups(phi: Float[np.ndarray, "U U"], groups: int) -> list[Group]:
    """Clusters of units that are active at the same positions, tightest first.

    Average linkage (Sokal and Michener 1958) on 1 - phi, cut where the mean silhouette is highest (Rousseeuw 1987);
    units alone are no group, nor are those that are never, or always, active.

    Args:
        phi: correlation between being active, from `UnitNumbers.co_activity`.
        groups: how many at most.

    Raises:
        ValueError: fewer than two units that are sometimes active, or `groups` below 1.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    alive = np.flatnonzero(np.isfinite(np.diagonal(phi)))
    if len(alive) < 2 or groups < 1:
        raise ValueError(
            f"{len(alive)} units are sometimes active, for {groups} groups: at least two and one are needed"
        )
    known = np.nan_to_num(phi[np.ix_(alive, alive)])
    distance = np.clip(1 - (known + known.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    label = np.zeros(len(alive), dtype=int)
    if len(alive) > 2:
        cuts = cut_tree(tree, n_clusters=range(2, len(alive))).T
        label = max(cuts, key=lambda cut: silhouette_score(distance, cut, metric="precomputed"))
    together = [np.flatnonzero(label == each) for each in np.unique(label)]
    found = [_cluster(alive[own], phi) for own in together if len(own) > 1]
    return sorted(found, key=lambda group: -group.strength)[:groups]


def _cluster(members: np.ndarray, phi: np.ndarray) -> Group:
    within = phi[np.ix_(members, members)]
    others = (within.sum(1) - np.diagonal(within)) / (len(members) - 1)
    order = np.argsort(-others, kind="stable")
    weights = torch.zeros(len(phi))
    weights[torch.from_numpy(members)] = len(members) ** -0.5
    return Group(weights, members[order].tolist(), float(others.mean()))


def factor_groups(rows: Float[Tensor, "R U"], groups: int, seed: int = 0) -> list[Group]:
    """Non-negative factors of activations, as understanding RL vision groups channels (Hilton et al. 2020,
    https://distill.pub/2020/understanding-rl-vision), by how much of all activation they carry.

    A factor's members are the fewest units that make up .9 of its squared length; the rest of it is left out.

    Args:
        rows: activations at R positions, none below 0.
        groups: number of factors.
        seed: of the fit.

    Raises:
        ValueError: activations below 0.
    """
    code = non_negative_parts(rows, groups, seed)
    sums = code.coefficients(rows).sum(0) * code.directions.sum(1)
    shares = (sums / sums.sum().clamp_min(1e-12)).tolist()
    found = []
    for direction, share in zip(code.directions, shares, strict=True):
        length = direction.norm()
        if length > 0:
            unit = direction / length
            order = unit.argsort(descending=True)
            members = order[: int((unit[order].square().cumsum(0) < 0.9).sum()) + 1]
            weights = torch.zeros_like(unit).scatter_(0, members, unit[members])
            found.append(Group(weights / weights.norm(), members.tolist(), float(share)))
    return sorted(found, key=lambda group: -group.strength)


class Edge(NamedTuple):
    """Two units that are active at the same positions more often than chance has it.

    Attributes:
        unit, other: their numbers, the lower one first.
        phi: correlation between being active.
    """

    unit: int
    other: int
    phi: float


def co_activity_edges(phi: Float[np.ndarray, "U U"], least: float) -> list[Edge]:
    """Edges of the graph of co-activity: every pair of units whose correlation is at least so much, strongest first.

    Args:
        phi: correlation between being active, from `UnitNumbers.co_activity`; NaN joins nothing.
        least: in 0 to 1.

    Raises:
        ValueError: a bound that is not above 0 and at most 1.
    """
    if not 0 < least <= 1:
        raise ValueError(f"a correlation of {least} joins no units: choose a bound above 0 and at most 1")
    units, others = np.nonzero(np.triu(np.nan_to_num(phi) >= least, 1))
    edges = [Edge(int(a), int(b), float(phi[a, b])) for a, b in zip(units, others, strict=True)]
    return sorted(edges, key=lambda edge: -edge.phi)


def draw_co_activity_graph(
    phi: Float[np.ndarray, "U U"], edges: Sequence[Edge], groups: Sequence[Group], title: str
) -> Figure:
    """Units as points, joined where an edge is, in the colour of the first group that they belong to.

    Units that are active together lie close: metric multidimensional scaling of the lengths of the shortest ways over
    edges of length 1 - phi (Isomap's distances; Tenenbaum et al. 2000). Units without an edge are left out.
    """
    from scipy.sparse.csgraph import shortest_path
    from sklearn.manifold import smacof

    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xticks=[], yticks=[])
    nodes = sorted({unit for edge in edges for unit in edge[:2]})
    if not nodes:
        axes.text(0.5, 0.5, "no two units are joined", ha="center", transform=axes.transAxes)
        return figure
    place = {unit: number for number, unit in enumerate(nodes)}
    lengths = np.zeros((len(nodes), len(nodes)))
    for edge in edges:
        lengths[place[edge.unit], place[edge.other]] = max(1 - edge.phi, 0.05)  # 0 is no edge there
    ways = shortest_path(lengths, directed=False)
    apart = 1.5 * max(float(ways[np.isfinite(ways)].max()), 1.0)  # of parts of the graph that nothing joins
    start = np.random.default_rng(0).standard_normal((len(nodes), 2))
    points, _ = smacof(np.where(np.isfinite(ways), ways, apart), n_components=2, init=start, n_init=1, max_iter=500)
    group_of = {unit: number for number, group in reversed(list(enumerate(groups))) for unit in group.members}
    for edge in edges:
        both = points[[place[edge.unit], place[edge.other]]]
        axes.plot(
            both[:, 0],
            both[:, 1],
            color="0.5",
            alpha=0.15 + 0.75 * min(edge.phi, 1.0),
            linewidth=3 * edge.phi,
            zorder=1,
        )
    colours = [f"C{group_of[unit] % 10}" if unit in group_of else "0.8" for unit in nodes]
    axes.scatter(points[:, 0], points[:, 1], s=170, c=colours, edgecolors="white", zorder=2)
    for unit, (x, y) in zip(nodes, points, strict=True):
        axes.text(x, y, str(unit), ha="center", va="center", fontsize=7, zorder=3)
    return figure


def draw_co_activity(
    phi: Float[np.ndarray, "U U"],
    groups: list[Group],
    title: str,
    measure: str = "correlation of being active (phi)",
) -> Figure:
    """The correlations of all members of groups, groups together, as a heat map; `measure` says what they are."""
    members = list(dict.fromkeys(unit for group in groups for unit in group.members))
    side = min(max(4.0, 0.16 * len(members) + 1.5), 12.0)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(phi[np.ix_(members, members)], vmin=-1, vmax=1, cmap="RdBu_r")
    small = max(4.0, min(8.0, 400 / max(len(members), 1)))
    axes.set_xticks(range(len(members)), [str(unit) for unit in members], rotation=90, fontsize=small)
    axes.set_yticks(range(len(members)), [str(unit) for unit in members], fontsize=small)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label=measure, shrink=0.8)
    return figure
