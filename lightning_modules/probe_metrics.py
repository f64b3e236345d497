"""How well probes read, with intervals over levels: counts and sums of each level first, one division at the end."""

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from interpretability.statistics import Interval, bootstrap_of_sums


class LevelSums(Metric):
    """Sums over the frames of each level, for scores that are functions of their totals."""

    full_state_update = False
    sums: list[Tensor]
    levels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", [], dist_reduce_fx="cat")
        self.add_state("levels", [], dist_reduce_fx="cat")

    def add(self, values: Float[Tensor, "B M"], levels: Int[Tensor, " B"]) -> None:
        """Add each frame's values to its level's sums."""
        seeds, place = levels.unique(return_inverse=True)
        self.levels.append(seeds)
        self.sums.append(values.new_zeros(len(seeds), values.shape[1]).double().index_add_(0, place, values.double()))

    def by_level(self) -> Float[np.ndarray, "L M"]:
        """Sums of every level that was seen."""
        sums, levels = (torch.cat(part) if isinstance(part, list) else part for part in (self.sums, self.levels))
        seeds, place = levels.unique(return_inverse=True)
        return sums.new_zeros(len(seeds), sums.shape[1]).index_add_(0, place, sums).cpu().numpy()

    @abstractmethod
    def headline(self, sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """The score that is compared with controls, of sums such as `by_level` gives."""

    def above(self, other: "LevelSums") -> Interval:
        """How far the headline score lies above another's on the same frames; levels are resampled for both at once."""
        mine, others = self.by_level(), other.by_level()
        count = mine.shape[1]
        return bootstrap_of_sums(
            np.concatenate([mine, others], axis=1),
            lambda sums: self.headline(sums[:, :count]) - other.headline(sums[:, count:]),
        )


class ClassScores(LevelSums):
    """`accuracy` and `macro_f1` of answers of K classes, and their confusion matrix.

    Macro-F1 is the mean over the classes that are among the true answers or among those given.

    Args:
        classes: K.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def update(self, given: Int[Tensor, " B"], true: Int[Tensor, " B"], levels: Int[Tensor, " B"]) -> None:
        """Add answers; those whose true one is -1 are left out."""
        known = true >= 0
        seeds, place = levels[known].unique(return_inverse=True)
        size = self.classes**2
        cells = (place * self.classes + true[known]) * self.classes + given[known]
        self.levels.append(seeds)
        self.sums.append(torch.bincount(cells, minlength=len(seeds) * size).view(-1, size).double())

    def confusion(self) -> Float[np.ndarray, "K K"]:
        """Counts: rows true, columns given."""
        return self.by_level().sum(0).reshape(self.classes, self.classes)

    def headline(self, sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Accuracy."""
        return sums[:, :: self.classes + 1].sum(1) / sums.sum(1)

    def compute(self) -> dict[str, Interval]:
        """The scores with their intervals; nothing where no answer is known."""
        confusion = self.by_level().reshape(-1, self.classes, self.classes)
        if not len(confusion):
            return {}
        hits = confusion.diagonal(axis1=1, axis2=2)
        sums = np.concatenate([hits, confusion.sum(2), confusion.sum(1)], axis=1)
        return {"accuracy": bootstrap_of_sums(sums, _accuracy), "macro_f1": bootstrap_of_sums(sums, _macro_f1)}


class PositionScores(LevelSums):
    """`accuracy` and `macro_f1` of finding one thing on a map of P positions.

    Accuracy is the share of the frames that have it in which the position of the highest score is its own: chance is
    1 / P. Macro-F1 is that of the answers to "is it here?", over all positions of all frames.
    """

    def update(self, scores: Float[Tensor, "B P"], where: Int[Tensor, " B"], levels: Int[Tensor, " B"]) -> None:
        """Add frames.

        Args:
            scores: above 0 where it is said to be.
            where: its position, -1 where it is nowhere.
            levels: of the frames.
        """
        there, said = where >= 0, scores > 0
        found = there & (scores.argmax(1) == where)
        hit = there & said.gather(1, where.clamp_min(0).unsqueeze(1)).squeeze(1)
        given, all_positions = said.sum(1), scores.shape[1]
        elsewhere = all_positions - given - there.long() + hit.long()  # neither said nor true to be here
        columns = [found, there, elsewhere, hit, all_positions - there.long(), there, all_positions - given, given]
        self.add(torch.stack([column.double() for column in columns], 1), levels)

    def headline(self, sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """Accuracy."""
        return sums[:, 0] / sums[:, 1]

    def compute(self) -> dict[str, Interval]:
        """The scores with their intervals; nothing where it is nowhere in all frames."""
        sums = self.by_level()
        if not len(sums) or not sums[:, 1].any():
            return {}
        return {
            "accuracy": bootstrap_of_sums(sums, self.headline),
            "macro_f1": bootstrap_of_sums(sums[:, 2:], _macro_f1),
        }


class NumberScores(LevelSums):
    """`r2` of given numbers: 1 - squared error / variance about the mean, averaged over D columns."""

    def update(self, given: Float[Tensor, "B D"], true: Float[Tensor, "B D"], levels: Int[Tensor, " B"]) -> None:
        """Add numbers; rows whose true ones are NaN are left out."""
        known = true.isfinite().all(1)
        given, true = given[known].double(), true[known].double()
        columns = [torch.ones_like(true[:, :1]), true, true.square(), (given - true).square()]
        self.add(torch.cat(columns, 1), levels[known])

    def headline(self, sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
        """R2."""
        total, squares, errors = np.split(sums[:, 1:], 3, axis=1)
        return (1 - errors / (squares - total**2 / sums[:, :1])).mean(1)

    def compute(self) -> dict[str, Interval]:
        """The score with its interval; nothing where no number is known."""
        sums = self.by_level()
        return {"r2": bootstrap_of_sums(sums, self.headline)} if len(sums) else {}


def _accuracy(sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
    hits, true, _ = np.split(sums, 3, axis=1)
    return hits.sum(1) / true.sum(1)


def _macro_f1(sums: Float[np.ndarray, "R M"]) -> Float[np.ndarray, " R"]:
    hits, true, given = np.split(sums, 3, axis=1)
    there = true + given > 0
    scores = np.divide(2 * hits, true + given, out=np.zeros_like(hits), where=there)
    return scores.sum(1) / there.sum(1)
