"""Codes of one tap's activations side by side: what they explain, how sparsely, as numbers, a table and a figure."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from datamodules import ActivationDataModule
from interpretability.component_codes import ComponentCode
from interpretability.concept_score import ConceptScore, LevelAUC, auc_over_levels
from interpretability.statistics import bracketed, join_metrics
from lightning_modules.sae_metrics import ExplainedVariance, Sparsity
from networks import SAEBase
from studies.report import Cell, Table

Code = ComponentCode | SAEBase
Measured = dict[str, dict[str, float]]
"""Numbers of each code, by their names."""

FULL = " full"
"""Ends the name of a code of which nothing is set to 0."""

_NOTHING_LEFT = 1e-5  # of the variance, as far as a figure shows
_MARKERS = "osD^vPX<>"
_COLUMNS = {
    "components": "components",
    "l0": "L0",
    "l0_inside": "L0 inside",
    "explained_variance": "explained variance",
    "explained_variance_least_channel": "of the least channel",
    "dead_fraction": "dead",
    "concept_auc": "AUC of units",
    "entity_auc": "AUC of entities",
    "return_ratio": "return ratio",
    "kl": "KL",
}


@torch.inference_mode()
def measure_concepts(
    codes: Mapping[str, Code], data: ActivationDataModule, tap: str
) -> tuple[Measured, dict[str, LevelAUC]]:
    """Best-concept AUCs of every code's units over labelled validation frames of heist, see `ConceptScore`.

    `concept_auc` is the mean over units, its interval over levels; `entity_auc` the mean over entities of the AUC of
    each one's own unit. The second result compares codes of the same frames by `auc_over_levels`.
    """
    scores: dict[str, ConceptScore] = {}
    for name, units, where in _units(codes, data, tap, "what units stand for"):
        scores.setdefault(name, ConceptScore(units.shape[1])).update(units, *where)
    by_level = {name: LevelAUC(score.detectors()) for name, score in scores.items()}
    for name, units, where in _units(codes, data, tap, "level by level"):
        by_level[name].update(units, *where)
    measured: Measured = {}
    for name, score in scores.items():
        over_levels = join_metrics({"concept_auc": auc_over_levels(by_level[name])})
        measured[name] = over_levels | {"entity_auc": score.entity_auc()}
    return measured, by_level


def _units(
    codes: Mapping[str, Code], data: ActivationDataModule, tap: str, progress: str
) -> Iterator[tuple[str, Tensor, tuple[Tensor, Tensor, Tensor]]]:
    """Every batch as each code's units see it, with the cells of entities, the side of the world and the levels."""
    device = next(iter(codes.values())).mean.device
    for batch in tqdm(data.val_dataloader(), desc=progress, unit="batch", leave=False):
        acts, labels = batch.activations[tap].to(device), batch.labels
        assert labels is not None
        for name, code in codes.items():
            yield name, code.encode(acts), (labels["cells"], labels["world_dim"], batch.levels)


@torch.inference_mode()
def measure(codes: Mapping[str, Code], data: ActivationDataModule, tap: str) -> Measured:
    """Every code over all validation frames: the numbers of components, `ExplainedVariance` and `Sparsity`."""
    shape, device = data.activation_shapes[tap], next(iter(codes.values())).mean.device
    variances = {name: ExplainedVariance(shape).to(device) for name in codes}
    sparsities: dict[str, Sparsity] = {}
    for batch in tqdm(data.val_dataloader(), desc=f"measure {', '.join(codes)}", unit="batch", leave=False):
        batch = batch.to(device)
        acts = batch.activations[tap]
        for name, code in codes.items():
            found = code.encode(acts)
            sparsity = sparsities.setdefault(name, Sparsity(found.shape[1]).to(device))
            sparsity.update(found.abs(), (batch.inside or {}).get(tap))
            variances[name].update(code.decode(found).to(acts.dtype), acts)
    measured: Measured = {}
    for name in codes:
        values = sparsities[name].compute() | variances[name].compute()
        kept = {key: float(values[key]) for key in _COLUMNS if key in values}
        measured[name] = {"components": float(len(sparsities[name].counts))} | kept
    return measured


def code_table(measured: Measured) -> Table:
    """One row a code."""
    names = [name for name in _COLUMNS if any(name in numbers for numbers in measured.values())]
    rows: list[list[Cell]] = [
        [code, *(_cell(numbers, name) for name in names)]
        for code, numbers in sorted(measured.items(), key=lambda item: item[0].endswith(FULL))
    ]
    return Table(["code", *(_COLUMNS[name] for name in names)], rows)


def _cell(numbers: Mapping[str, float], name: str) -> Cell:
    if name not in numbers or not np.isfinite(numbers[name]):
        return ""
    if f"{name}_low" in numbers:
        return bracketed(numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"])
    return int(numbers[name]) if name == "components" else round(numbers[name], 4)


def draw_codes(measured: Measured, title: str) -> Figure:
    """What each code leaves unexplained against how many coefficients it takes; down and to the left is better.

    Hollow marks are codes of which nothing is set to 0; those that lose nothing stand at the lower edge.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    families = list(dict.fromkeys(name.removesuffix(FULL) for name in measured))
    for name, values in measured.items():
        if "explained_variance" not in values:
            continue
        number = families.index(name.removesuffix(FULL))
        axes.plot(
            values["l0"],
            max(1 - values["explained_variance"], _NOTHING_LEFT),
            "*" if name == "sae" else _MARKERS[number % len(_MARKERS)],
            markersize=15 if name == "sae" else 8,
            color=f"C{number}",
            fillstyle="none" if name.endswith(FULL) else "full",
            linestyle="none",
            label=name,
        )
    axes.set(
        xscale="log", yscale="log", xlabel="coefficients a position (L0)", ylabel="unexplained variance", title=title
    )
    axes.set_ylim(bottom=_NOTHING_LEFT / 2)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def over_seeds(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over autoencoders with 95 % bounds by Student's t."""
    found: dict[str, float] = {}
    for key in measured[0]:
        if key.endswith(("_low", "_high")):
            continue
        values = np.array([numbers[key] for numbers in measured])
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        mean = float(values.mean())
        found |= {key: mean, f"{key}_low": mean - half, f"{key}_high": mean + half}
    return found


def less(other: str) -> str:
    """The name of the difference between the autoencoder's best-concept AUC and another code's."""
    return f"concept_auc_less_{other.replace(' ', '_')}"
