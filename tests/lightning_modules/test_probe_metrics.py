import numpy as np
import pytest
import torch
from torchmetrics.functional import r2_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from lightning_modules.probe_metrics import ClassScores, NumberScores, PositionScores

FRAMES = 600


@pytest.fixture
def levels() -> torch.Tensor:
    return torch.randint(50, (FRAMES,), generator=torch.Generator().manual_seed(0)) + 50_000


def test_class_scores_are_torchmetrics_own(levels: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1)
    true = torch.randint(-1, 4, (FRAMES,), generator=generator)
    given = torch.where(torch.rand(FRAMES, generator=generator) < 0.6, true.clamp_min(0), 2)
    scores = ClassScores(5)  # the last one never occurs
    scores.update(given[:200], true[:200], levels[:200])
    scores.update(given[200:], true[200:], levels[200:])
    found = scores.compute()
    known = (given[true >= 0], true[true >= 0], 5)
    assert found["accuracy"].value == pytest.approx(float(multiclass_accuracy(*known, average="micro")))
    assert found["macro_f1"].value == pytest.approx(float(multiclass_f1_score(*known, average="macro")))
    np.testing.assert_array_equal(scores.confusion(), multiclass_confusion_matrix(*known))
    for interval in found.values():
        assert interval.low < interval.value < interval.high


def test_numbers_are_scored_by_r2(levels: torch.Tensor) -> None:
    true = torch.randn(FRAMES, 2, generator=torch.Generator().manual_seed(2)).double() * 3 + 40
    given = true + torch.tensor([1.0, 2.0])
    true[::5] = torch.nan
    scores = NumberScores()
    scores.update(given, true, levels)
    known = true.isfinite().all(1)
    expected = float(r2_score(given[known], true[known], multioutput="uniform_average"))
    found = scores.compute()["r2"]
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.low < found.value < found.high


def test_positions_by_hand(levels: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(3)
    margins = torch.randn(FRAMES, 9, generator=generator)
    where = torch.randint(-1, 9, (FRAMES,), generator=generator)
    scores = PositionScores()
    scores.update(margins, where, levels)
    found = scores.compute()
    there = where >= 0
    assert found["accuracy"].value == pytest.approx(float((margins.argmax(1) == where)[there].float().mean()))
    here = (torch.arange(9) == where[:, None]).long().flatten()
    expected = multiclass_f1_score((margins > 0).long().flatten(), here, 2, average="macro")
    assert found["macro_f1"].value == pytest.approx(float(expected))


def test_the_level_is_the_unit() -> None:
    """Frames of one level repeat each other: copying them narrows no interval."""
    true = torch.randint(2, (40,), generator=torch.Generator().manual_seed(4))
    given = torch.zeros(40, dtype=torch.long)
    once, often = ClassScores(2), ClassScores(2)
    once.update(given, true, torch.arange(40))
    often.update(given.repeat(25), true.repeat(25), torch.arange(40).repeat(25))
    assert once.compute() == often.compute()


def test_what_two_scores_share_cancels_in_their_difference(levels: torch.Tensor) -> None:
    """Levels are drawn for both at once: the interval of the difference is that of the frames where they differ."""
    true = torch.randint(3, (FRAMES,), generator=torch.Generator().manual_seed(5))
    good, bad = true.clone(), true.clone()
    hard = levels % 2 == 0  # levels in which both fail
    good[hard], bad[hard] = (true[hard] + 1) % 3, (true[hard] + 1) % 3
    bad[::10] = (true[::10] + 1) % 3
    scores = []
    for given in (good, bad):
        scores.append(ClassScores(3))
        scores[-1].update(given, true, levels)
    found, alone = scores[0].above(scores[1]), scores[0].compute()["accuracy"]
    assert found.value == pytest.approx(float((good != bad).float().mean()))
    each = torch.stack([(good != bad).float(), torch.ones(FRAMES)], 1)
    sums = torch.zeros(50, 2).index_add_(0, levels - 50_000, each).numpy()
    drawn = sums[np.random.default_rng(0).integers(len(sums), size=(4_000, len(sums)))].sum(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))
    assert found.high - found.low < (alone.high - alone.low) / 3
    assert scores[0].above(scores[0]) == (0, 0, 0)


def test_without_answers_there_are_no_scores(levels: torch.Tensor) -> None:
    unknown = torch.full((FRAMES,), -1)
    for scores, given, true in (
        (ClassScores(3), unknown.clamp_min(0), unknown),
        (NumberScores(), torch.zeros(FRAMES, 1), torch.full((FRAMES, 1), torch.nan)),
        (PositionScores(), torch.zeros(FRAMES, 4), unknown),
    ):
        scores.update(given, true, levels)
        assert scores.compute() == {}
