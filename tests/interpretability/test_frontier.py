import math

import pytest

from interpretability.frontier import FrontierPoint, draw_frontier


@pytest.mark.parametrize("count", [0, 1, 30])
def test_draws_any_number_of_points_and_kinds(count: int) -> None:
    points = [
        FrontierPoint(f"a{index}", f"kind{index % 10}", index, 1 - 1 / (index + 1), 0.1) for index in range(count)
    ]
    picture = draw_frontier(points, "title", raw_l0=2.0)
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert picture.float().std() > 0


def test_points_that_are_not_finite_are_left_out_and_others_seen() -> None:
    good = FrontierPoint("a", "kind", 3.0, 0.9, 0.0)
    alone = draw_frontier([good], "title")
    assert (draw_frontier([good, FrontierPoint("b", "kind", math.nan, 0.5, 0.0)], "title") == alone).all()
    assert (draw_frontier([good, FrontierPoint("b", "kind", 5.0, 0.5, 0.5)], "title") != alone).any()
