import io

import numpy as np
import pytest

from interpretability import Interval, ProbeResult, draw_confusion, draw_heat_map


def result(target: str, tap: str, value: float, best: bool = False, number: bool = False) -> ProbeResult:
    name = "r2" if number else "accuracy"
    scores = {name: Interval(value, value - 0.1, value + 0.1)}
    if not number:
        scores["macro_f1"] = scores[name]
    control = {"majority": Interval(0.25, 0.2, 0.3)}
    confusion = None if number else np.array([[3.0, 1.0], [0.0, 4.0]])
    return ProbeResult("flat", target, tap, scores, control, confusion, ("a", "b"), 1 - value, best)


def test_metric_names_with_controls_and_the_best_tap() -> None:
    assert set(result("target", "fc1", 0.5).metrics("natural")) == {
        f"probe/natural/flat/target/fc1/{name}" for name in ("accuracy", "macro_f1", "control_majority")
    }
    best = result("path_length", "fc1", 0.5, best=True, number=True)
    metrics = best.metrics("deconfounded")
    assert (
        metrics["probe/deconfounded/flat/path_length/best/r2"] == metrics["probe/deconfounded/flat/path_length/fc1/r2"]
    )
    assert not any(name.endswith("above_pixels") for name in metrics)
    above = Interval(0.1, 0.0, 0.2)
    metrics = best._replace(above_pixels=above).metrics("deconfounded")
    assert metrics["probe/deconfounded/flat/path_length/best/above_pixels"] == above


def test_the_heat_map_shows_scores_and_the_margin_over_the_best_control() -> None:
    results = [result("target", "fc1", 0.5), result("target", "fc2", 0.75, best=True)]
    figure = draw_heat_map([*results, result("path_length", "fc1", -3.0, best=True, number=True)], "title")
    scores, margins = figure.axes
    shown = [[text.get_text() for text in axes.texts] for axes in (scores, margins)]
    assert shown == [[".50", ".75", "<-1"], [".25", ".50", "<-1"]]
    assert len(scores.patches) == 2
    figure.savefig(io.BytesIO())


def test_a_confusion_matrix_shows_shares_of_the_true_class() -> None:
    figure = draw_confusion(result("target", "fc1", 0.875), "title")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.75", "0.25", "1.00"]
    figure.savefig(io.BytesIO())
    with pytest.raises(ValueError, match="no classes"):
        draw_confusion(result("path_length", "fc1", 0.5, number=True), "title")
