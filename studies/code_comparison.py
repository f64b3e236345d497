"""Codes of one tap's activations side by side: what they explain, how sparsely, as numbers, a table and a figure."""

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from datamodules import ActivationDataModule
from interpretability.component_codes import ComponentCode
from lightning_modules.sae_metrics import ExplainedVariance, Sparsity
from networks import SAEBase
from studies.report import Cell, Table

Code = ComponentCode | SAEBase
Measured = dict[str, dict[str, float]]
"""Numbers of each code, by their names."""

FULL = " full"
"""Ends the name of a code of which nothing is set to 0."""

_COLUMNS = {
    "components": "components",
    "l0": "L0",
    "l0_inside": "L0 inside",
    "explained_variance": "explained variance",
    "explained_variance_least_channel": "of the least channel",
    "dead_fraction": "dead",
    "return_ratio": "return ratio",
    "kl": "KL",
}


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
        return f"{numbers[name]:.4f} ({numbers[f'{name}_low']:.4f} to {numbers[f'{name}_high']:.4f})"
    return int(numbers[name]) if name == "components" else round(numbers[name], 4)


def draw_codes(measured: Measured, title: str) -> Figure:
    """What each code leaves unexplained against how many coefficients it takes; down and to the left is better."""
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, values) in enumerate(measured.items()):
        if "explained_variance" not in values or name == f"channels{FULL}":  # which loses nothing
            continue
        left = max(1 - values["explained_variance"], 1e-5)
        axes.scatter(values["l0"], left, marker="*" if name == "sae" else "o", s=120 if name == "sae" else 40)
        offset = (6, 4 if number % 2 else -10)
        axes.annotate(name, (values["l0"], left), xytext=offset, textcoords="offset points", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="coefficients a position (L0)", ylabel="unexplained variance", title=title
    )
    axes.grid(alpha=0.3)
    return figure
