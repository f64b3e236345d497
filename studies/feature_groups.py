"""Which units go together? Clusters of units active at the same positions, or non-negative factors, with pictures."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from datamodules import ActivationBatch, ActivationDataModule
from environments import EnvironmentSettings
from environments.procgen import DistributionMode
from interpretability.dataset_examples import DatasetExamples
from interpretability.feature_groups import (
    Edge,
    Group,
    co_active_groups,
    co_activity_edges,
    draw_co_activity,
    draw_co_activity_graph,
    factor_groups,
)
from interpretability.feature_sheet import draw_feature_sheet
from interpretability.optimised_images import OptimisationSettings
from interpretability.signed_taps import falls_below_zero
from interpretability.stored_colours import game_colours
from interpretability.unit_numbers import UnitNumbers
from networks import DEFAULT_PRECISION, Precision
from studies.arguments import check_at_least_one, check_not_negative
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device, load_subject

_SETTINGS = OptimisationSettings()
_FACTOR_ROWS = 50_000


class FeatureGroups(Study):
    """Groups the latents of an autoencoder, or the channels of a tap, and pictures each group as one direction.

    `co_activity` clusters units by the correlation of being active at the same position, or on a tap that falls below
    0, where being above 0 says little, of the activations themselves; `factors` are non-negative factors of the
    activations, as older work groups channels. A group's images and examples are of what drives its units up.

    Writes `figures/groups.png` (a group a row: images optimised for its direction, and the frames that go furthest
    along it), `figures/co_activity.png` (correlations of all members), `figures/graph.png` (all units that are
    active together, joined and laid out, in the colours of their groups) and the tables `groups` and `edges`. Summary:
    `groups/count`, `groups/members` (units in groups), `groups/edges`, `groups/within` and `groups/between`: mean
    such correlation between units of one group, and of different ones.

    Args:
        agent: path of the agent's weights.
        sae: path of an autoencoder whose latents are grouped; null for the tap's channels.
        tap: null for the autoencoder's.
        method: how.
        groups: how many at most.
        edge: least correlation that joins two units in the graph.
        examples: frames shown of each, at most one a level.
        game: what is played.
        distribution_mode: its difficulty.
        num_frames: validation frames looked through.
        optimisation: how images are made.
        seed: of factors.
        precision: in which the agent runs.
        cache_dir: folder of activation caches.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that does not exist, factors of one that falls below
            0, a number below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        sae: str | None = None,
        tap: str | None = None,
        method: Literal["co_activity", "factors"] = "co_activity",
        groups: int = 8,
        edge: float = 0.3,
        examples: int = 6,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        num_frames: int = 20_000,
        optimisation: OptimisationSettings = _SETTINGS,
        seed: int = 0,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/activations",
        device: str = "auto",
    ) -> None:
        check_at_least_one({"groups": groups, "examples": examples, "num_frames": num_frames})
        check_not_negative({"seed": seed})
        if not 0 < edge <= 1:
            raise ValueError(f"edge is {edge}: a correlation above 0 and at most 1 joins two units")
        self.edge = edge
        self.device = choose_device(device)
        self.agent, self.tap, self.sae = load_subject(agent, sae, tap, self.device)
        if len(self.agent.taps[self.tap]) not in (1, 3):
            raise ValueError(f"{self.tap} has no channels: choose another tap")
        self.signed = falls_below_zero(self.agent, self.tap, self.sae)
        if method == "factors" and self.signed:
            mend = "choose a tap after a ReLU, or method co_activity" if self.agent.rectifies else "choose co_activity"
            raise ValueError(f"{self.tap} has activations below 0, which have no non-negative factors: {mend}")
        self.method, self.groups, self.examples = method, groups, examples
        self.num_frames, self.optimisation, self.seed = num_frames, optimisation, seed
        self.precision: Precision = precision
        self.environment = EnvironmentSettings(game, distribution_mode)
        self.data = ActivationDataModule(
            agent,
            [self.tap],
            environment=self.environment,
            validation_frames=num_frames,
            precision=precision,
            cache_dir=cache_dir,
        )
        self.data.device = self.device

    @torch.no_grad()
    def run(self) -> Report:
        """Count, group, look again, draw."""
        units = self.agent.taps[self.tap][0] if self.sae is None else self.sae.num_latents
        numbers = UnitNumbers(units, self.signed)
        rows: list[Tensor] = []
        share = _FACTOR_ROWS / self.num_frames
        generator = torch.Generator().manual_seed(self.seed)
        for _, maps in self._batches("count what is active together"):
            numbers.update(maps)
            flat = maps.movedim(1, -1).flatten(0, -2).cpu()
            kept = torch.randperm(len(flat), generator=generator)[: max(int(share * len(maps)), 1)]
            rows.append(flat[kept])
        phi = numbers.co_activity()
        if self.method == "co_activity":
            found = co_active_groups(phi, self.groups)
        else:
            found = factor_groups(torch.cat(rows), self.groups, self.seed)
        if not found:
            raise ValueError(f"no two units of {self.tap} go together: there is nothing to show")
        directions = torch.stack([group.weights for group in found]).to(self.device)
        examples = DatasetExamples(self.examples)
        for batch, maps in self._batches("look for examples"):
            assert batch.frames is not None
            examples.update(batch.frames, torch.einsum("gu,buhw->bghw", directions, maps), batch.levels)
        self.data.teardown("validate")
        kind = "channels" if self.sae is None else "latents"
        together = "that vary together" if self.signed else "active together"
        how = together if self.method == "co_activity" else "non-negative factors"
        picture = draw_feature_sheet(
            self.agent,
            self.tap,
            list(range(len(found))),
            examples,
            game_colours(self.environment, self.data.cache_dir),
            sae=self.sae,
            settings=self.optimisation,
            precision=self.precision,
            title=f"{self.tap}: {len(found)} groups of {kind}, {how}",
            directions=directions,
            names=[_heading(group) for group in found],
        ).picture
        within, between = _contrast(phi, found)
        edges = co_activity_edges(phi, self.edge)
        summary = {
            "groups/count": float(len(found)),
            "groups/members": float(len({unit for group in found for unit in group.members})),
            "groups/edges": float(len(edges)),
            "groups/within": within,
            "groups/between": between,
        }
        table = Table(
            ["group", "units", "strength", "members"],
            [
                [index, len(group.members), group.strength, " ".join(map(str, group.members))]
                for index, group in enumerate(found)
            ],
        )
        measure = "correlation of activations" if self.signed else "correlation of being active (phi)"
        heat = draw_co_activity(phi, found, f"{self.tap}: {kind} {together}", measure)
        joined = f"{self.tap}: {kind} whose activity correlates by {self.edge:g} or more"
        graph = draw_co_activity_graph(phi, edges, found, joined)
        tables = {"groups": table, "edges": _edge_table(edges, found)}
        return Report(summary, tables, {"groups": picture, "co_activity": heat, "graph": graph})

    def _batches(self, what: str) -> Iterator[tuple[ActivationBatch, Float[Tensor, "B U H W"]]]:
        """Validation batches, and the units' maps; a flat tap's as maps of 1 x 1."""
        for batch in tqdm(self.data.val_dataloader(), desc=what, unit="batch", leave=False):
            acts = batch.activations[self.tap].to(self.device)
            maps = acts.float() if self.sae is None else self.sae.encode(acts)
            yield batch, maps[:, :, None, None] if maps.ndim == 2 else maps


def _edge_table(edges: Sequence[Edge], groups: Sequence[Group]) -> Table:
    rows: list[list[Cell]] = []
    for edge in edges:
        shared = [index for index, group in enumerate(groups) if set(edge[:2]) <= set(group.members)]
        rows.append([edge.unit, edge.other, edge.phi, " ".join(map(str, shared))])
    return Table(["unit", "other", "phi", "groups of both"], rows, printed=False)


def _heading(group: Group) -> str:
    shown = ", ".join(map(str, group.members[:4]))
    return shown if len(group.members) <= 4 else f"{shown} + {len(group.members) - 4}"


def _contrast(phi: Float[np.ndarray, "U U"], groups: list[Group]) -> tuple[float, float]:
    """Mean correlation between units of one group, and between those of different ones; NaN where there are none."""
    within: list[float] = []
    between: list[float] = []
    for index, group in enumerate(groups):
        within += [float(phi[a, b]) for a in group.members for b in group.members if a < b]
        for other in groups[:index]:
            between += [float(phi[a, b]) for a in group.members for b in other.members if a != b]
    return _mean(within), _mean(between)


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
