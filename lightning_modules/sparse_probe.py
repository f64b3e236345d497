"""What few units tell: probes on the k units that tell most about a target, of an autoencoder or of raw channels."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_modules.probe_fit import fit_path
from lightning_modules.probe_losses import ClassLoss
from lightning_modules.probe_metrics import ClassScores

STRENGTHS = (0.1, 0.01, 0.001, 0.0001)


def most_telling(features: Float[Tensor, "R U"], labels: Int[Tensor, " R"], classes: int) -> Int[Tensor, " U"]:
    """All units, those first whose means differ most between classes against their spread within (the F statistic).

    The filter of scikit-learn's `f_classif`, as sparse probing (Gurnee et al. 2023, arXiv 2305.01610) uses the
    difference of means for two classes. Rows labelled -1 are left out; a unit that never varies comes last.
    """
    known = labels >= 0
    rows, own = features[known].double(), labels[known]
    counts = torch.bincount(own, minlength=classes).double()
    sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64).index_add_(0, own, rows)
    mean = rows.mean(0)
    there = counts > 0
    between = (counts[there, None] * (sums[there] / counts[there, None] - mean).square()).sum(0)
    within = (rows - mean).square().sum(0) - between
    ratio = torch.where(within > 1e-9 * between.clamp_min(1e-30), between / within, between * torch.inf)
    return ratio.nan_to_num(-1.0, posinf=1e30).argsort(descending=True, stable=True)


def sparse_scores(
    splits: dict[str, tuple[Float[Tensor, "R U"], Int[Tensor, " R"]]],
    levels: Int[Tensor, " T"],
    classes: int,
    sizes: Sequence[int],
) -> dict[int, ClassScores]:
    """Scores on test levels of probes that see k units alone, for every k; units are chosen on training rows.

    Args:
        splits: features and labels of `training`, `validation` and `test`.
        levels: of the test rows.
        classes: of the target.
        sizes: the k's.
    """
    order = most_telling(*splits["training"], classes)
    found = {}
    for k in sizes:
        units = order[:k]
        std, mean = torch.std_mean(splits["training"][0][:, units], 0)
        rows = {name: (values[:, units] - mean) / std.clamp_min(1e-6) for name, (values, _) in splits.items()}
        losses = {name: ClassLoss(labels[:, None], [classes]) for name, (_, labels) in splits.items()}
        fit = fit_path(
            rows["training"],
            losses["training"],
            rows["validation"],
            losses["validation"],
            STRENGTHS,
            len(rows["training"]),
        )
        scores = ClassScores(classes)
        scores.update((rows["test"] @ fit.weight.T + fit.bias).argmax(1), splits["test"][1], levels)
        found[k] = scores
    return found
