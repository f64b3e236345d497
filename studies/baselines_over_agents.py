"""The comparison of an autoencoder with plain codes once more at other agents: what holds beyond a single one."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules import ActivationDataModule
from interpretability.component_codes import principal_components, raw_channels
from interpretability.concept_score import LevelAUC, auc_over_levels
from interpretability.report_page import Section
from interpretability.statistics import join_metrics
from networks import SAEBase, load_agent
from studies.alike_training import train_alike
from studies.code_comparison import Code, Measured, code_table, less, measure, measure_concepts, over_seeds
from studies.report import Cell, Table

COMPARED = ("sae", "channels", "pca")
"""Codes that are compared at every agent."""

_SHOWN = ("l0", "explained_variance", "concept_auc", "entity_auc")


def check_agents(paths: Sequence[str], sae: SAEBase, own: str, own_hash: str) -> dict[str, str]:
    """Paths of other agents by names that differ: short ones where they do, and none the study's own agent's.

    Raises:
        ValueError: one that lacks the autoencoder's tap in its shape, is the study's own, or is named twice.
    """
    found: dict[str, str] = {}
    seen = {own_hash}
    for path in paths:
        agent = load_agent(path)
        if sae.tap not in agent.taps or agent.taps[sae.tap][0] != sae.in_channels:
            raise ValueError(f"agents: {path} has no {sae.tap} with {sae.in_channels} channels, as the autoencoder has")
        if agent.weights_hash in seen:
            raise ValueError(f"agents: {path} is the study's own agent, or named twice: name others")
        seen.add(agent.weights_hash)
        name = Path(path).stem
        found[name if name not in {*found, Path(own).stem} else str(path)] = path
    return found


def training_rows(data: ActivationDataModule, tap: str, count: int) -> Float[Tensor, "R C"]:
    """Training activations, one position each."""
    parts: list[Tensor] = []
    missing = count
    # after a training the first goes on in the middle of an epoch and may be short; a whole one follows it
    for batch in (batch for _ in range(2) for batch in data.train_dataloader()):
        parts.append(batch.activations[tap].movedim(1, -1).flatten(0, -2).float())
        missing -= len(parts[-1])
        if missing <= 0:
            break
    return torch.cat(parts)[:count]


def compare_at(
    sae: SAEBase,
    data: ActivationDataModule,
    labelled: ActivationDataModule | None,
    *,
    steps: int,
    seed: int,
    fit_rows: int,
    device: torch.device,
) -> Measured:
    """What `COMPARED` come to at one agent, with an autoencoder trained there as the given one was at its own.

    Args:
        sae: the one that is taken after.
        data: of the other agent.
        labelled: the same with labels, for AUCs; None where they cannot be known.
        steps, seed: of the training.
        fit_rows: positions that components are fitted on.
        device: where.
    """
    tap = sae.tap
    trained = train_alike(sae, data, steps, seed, device)
    l0 = measure({"sae": trained}, data, tap)["sae"]["l0"]
    rows = training_rows(data, tap, fit_rows)
    plain = {"channels": raw_channels(rows), "pca": principal_components(rows)}
    codes: dict[str, Code] = {"sae": trained} | {
        name: code.limited(rows, l0).to(device) for name, code in plain.items()
    }
    measured = measure(codes, data, tap)
    data.teardown("fit")
    data.teardown("validate")
    if labelled is not None:
        concepts, by_level = measure_concepts(codes, labelled, tap)
        for name in codes:
            measured[name] |= concepts[name]
        measured["sae"] |= differences(by_level, "sae", COMPARED[1:])
        labelled.teardown("validate")
    return measured


def differences(by_level: Mapping[str, LevelAUC], name: str, others: Iterable[str]) -> dict[str, float]:
    """How much better the units of one code stand for something than those of others, with bounds over levels."""
    return join_metrics({less(other): auc_over_levels(by_level[name], by_level[other]) for other in others})


def mean_over_agents(by_agent: Sequence[Measured]) -> Measured:
    """Of each code the means over agents, with 95 % bounds by Student's t."""
    found: Measured = {}
    for code in COMPARED:
        of_each = [measured[code] for measured in by_agent]
        shared = [
            {key: value for key, value in one.items() if all(key in other for other in of_each)} for one in of_each
        ]
        found[code] = over_seeds(shared)
    return found


def agents_table(by_agent: Mapping[str, Measured], mean: Measured) -> Table:
    """One row an agent and code, and the means."""
    rows: list[list[Cell]] = []
    columns: list[str] = []
    for agent, measured in [*by_agent.items(), ("mean over agents", mean)]:
        table = code_table({code: {k: v for k, v in measured[code].items() if _shown(k)} for code in COMPARED})
        columns = ["agent", *table.columns]
        rows += [[agent, *row] for row in table.rows]
    return Table(columns, rows)


def _shown(key: str) -> bool:
    return key.removesuffix("_low").removesuffix("_high") in _SHOWN


def agents_section(table: Table) -> Section:
    """The part of the page."""
    return Section(
        "Over agents",
        [
            "The same at other agents, each with an autoencoder of its own, trained alike on its own play, and plain "
            "codes at that one's L0. The mean over agents has bounds by Student's t; agents of one lineage (one "
            "trained on from another) are not independent, and their interval is too narrow."
        ],
        (),
        table.columns,
        table.rows,
    )
