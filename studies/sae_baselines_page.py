"""Pictures, page and conclusion of the comparison of an autoencoder with plainer codes."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from datamodules import ActivationBatch
from environments.heist import ENTITIES
from interpretability.colour import ColourStatistics
from interpretability.concept_score import Detectors
from interpretability.dataset_examples import DatasetExamples
from interpretability.feature_sheet import draw_feature_sheet
from interpretability.optimised_images import OptimisationSettings
from interpretability.report_page import Section, report_page
from interpretability.statistics import bracketed
from networks import Precision, SAEBase, TappedAgent
from studies.baselines_over_agents import agents_section
from studies.code_comparison import Measured, less
from studies.report import Cell, Table

_WITHOUT_NMF = (
    "Activations fall below 0 here: channels are taken about their means, and no factors are non-negative (nmf)."
)

DIFFERENCES = ("channels", "pca", "random decoder")
"""What the autoencoder's best-concept AUC is compared with."""


def draw_best_units(
    agent: TappedAgent,
    tap: str,
    sae: SAEBase | None,
    batches: Iterable[ActivationBatch],
    colours: ColourStatistics,
    detectors: Detectors | None,
    *,
    shown: int,
    examples: int,
    settings: OptimisationSettings,
    precision: Precision,
) -> UInt8[Tensor, "H W 3"]:
    """A sheet of the latents, or without an autoencoder the channels, that tell best where an entity is.

    Without detectors those that contribute most: mean activation x length of the direction. So too where fewer than
    `shown` detectors are active, rather than silent, at their entity. Of channels that fall below 0 nothing but their
    positive side is shown.
    """
    device = next(agent.parameters()).device
    found = DatasetExamples(examples)
    with torch.no_grad():
        for batch in batches:
            acts = batch.activations[tap].to(device)
            assert batch.frames is not None
            found.update(batch.frames, acts.float() if sae is None else sae.encode(acts), batch.levels)
    share = found.mean if sae is None else found.mean * sae.decoder_norms().detach().cpu()
    names = [f"{'channel' if sae is None else 'latent'} {unit}" for unit in range(len(share))]
    best: list[int] = []
    if detectors is not None:
        for row in np.argsort(-detectors.auc, kind="stable"):
            unit = int(detectors.units[row])
            if len(best) < shown and detectors.sign[row] > 0 and not detectors.negative[row]:
                entity = ENTITIES[detectors.entities[row]].replace("_", " ")
                names[unit] = f"{unit}: {entity} {detectors.auc[row]:.2f}"
                best.append(unit)
    active = [unit for unit in share.argsort(descending=True).tolist() if unit not in best]
    units = best + active[: max(shown - len(best), 0)]
    kind = "channels" if sae is None else "latents"
    how = "that contribute most" if not best else "that tell best where an entity is, with their AUC"
    return draw_feature_sheet(
        agent,
        tap,
        units,
        found,
        colours,
        sae=sae,
        settings=settings,
        precision=precision,
        title=f"{tap}: the {kind} {how}",
        names=names,
    ).picture


def conclusion(tap: str, measured: Measured, over_agents: Measured | None = None) -> str:
    """What the numbers say, in a sentence or two.

    Args:
        tap: of the autoencoder.
        measured: of each code.
        over_agents: of each code the means over agents, if there are several.
    """
    sae, channels = measured["sae"], measured["channels"]
    parts = [
        f"At {tap} the autoencoder explains {sae['explained_variance']:.1%} of the variance with {sae['l0']:.1f} "
        f"active latents a position, raw channels {channels['explained_variance']:.1%} and principal components "
        f"{measured['pca']['explained_variance']:.1%} with as many."
    ]
    whole = measured.get("sae seeds", {})
    verdicts = []
    for other in DIFFERENCES:
        key = less(other)
        if not np.isfinite(sae.get(f"{key}_low", np.nan)):
            continue
        value, low, high = (sae[f"{key}{end}"] for end in ("", "_low", "_high"))
        how = "better than" if low > 0 else "worse than" if high < 0 else "no better and no worse than"
        words = {"channels": "raw channels", "pca": "principal components"}.get(other, "random directions")
        if other == "random decoder":
            words += f", which have an L0 of {measured[other]['l0']:.1f},"
        said = f"{how} those of {words} ({value:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} over levels"
        if np.isfinite(whole.get(f"{key}_low", np.nan)):
            over = (whole[f"{key}{end}"] for end in ("", "_low", "_high"))
            said += "; over seeds of autoencoders {:+.3f}, {:+.3f} to {:+.3f}".format(*over)
        others = (over_agents or {}).get("sae", {})
        if np.isfinite(others.get(f"{key}_low", np.nan)):
            over = (others[f"{key}{end}"] for end in ("", "_low", "_high"))
            said += "; over agents {:+.3f}, {:+.3f} to {:+.3f}".format(*over)
        verdicts.append(said + ")")
    if verdicts:
        parts.append(
            f"Its latents, each for the entity that it stands for, tell where that is with a mean AUC of "
            f"{sae['concept_auc']:.3f}, {', '.join(verdicts)}. That mean is over all units; of each entity's own unit "
            f"alone it is {sae['entity_auc']:.3f}, of raw channels {channels['entity_auc']:.3f}."
        )
    return " ".join(parts)


def difference_table(measured: Measured) -> Table:
    """Mean best-concept AUC of each autoencoder's latents less that of other codes' units."""
    rows: list[list[Cell]] = []
    for name, numbers in measured.items():
        for other in DIFFERENCES:
            if less(other) in numbers:
                value, low, high = (numbers.get(f"{less(other)}{end}", np.nan) for end in ("", "_low", "_high"))
                rows.append([name, other, bracketed(value, low, high) if np.isfinite(low) else round(value, 4)])
    return Table(["autoencoder", "less", "AUC of units"], rows)


def baselines_page(
    said: str,
    codes: Table,
    differences: Table,
    figure: Figure,
    sheets: Mapping[str, UInt8[Tensor, "H W 3"]],
    agents: Table | None,
) -> str:
    """The page."""
    text = [said]
    sections = [
        Section(
            "What codes explain, and what their units stand for",
            [
                "Plain codes keep as many coefficients a position as the autoencoder has active latents; those called "
                "full keep all. AUC of units: how well a unit tells by its activation at a position whether the entity "
                "that it stands for is there (.5 is chance), mean over units, interval over levels. Which entity that "
                "is was chosen on other levels. AUC of entities: the same of each entity's best unit, mean over them.",
                *([] if any(row[0] == "nmf" for row in codes.rows) else [_WITHOUT_NMF]),
            ],
            [("unexplained variance by L0", figure)],
            codes.columns,
            codes.rows,
        )
    ]
    if differences.rows:
        sections.append(
            Section(
                "The difference",
                [
                    "Mean AUC of the autoencoder's units less that of another code's, on the same levels, with "
                    "intervals by resampling levels; of `sae seeds` the mean over autoencoders, by Student's t."
                ],
                (),
                differences.columns,
                differences.rows,
            )
        )
    if agents is not None:
        sections.append(agents_section(agents))
    sections += [
        Section(f"The best {kind}", figures=[(f"optimised images and examples of {kind}", picture)])
        for kind, picture in sheets.items()
    ]
    return report_page("Is the autoencoder better than what is to be had without one?", text, sections)
