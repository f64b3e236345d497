import numpy as np
import pytest
from matplotlib.figure import Figure

from interpretability.statistics import Interval
from studies.bars import grouped_bars


def test_bars_stand_side_by_side_in_their_groups_with_their_bounds() -> None:
    axes = Figure().subplots()
    whole, none = Interval(0.5, 0.4, 0.7), Interval(0.0, 0.0, 0.1)
    bars = {"edit": [whole, none], "nowhere": [None, None], "bound": [None, whole]}
    grouped_bars(axes, ["blue key", "gem"], bars, scale=100)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["blue key", "gem"]
    assert axes.get_legend_handles_labels()[1] == ["edit", "bound"]
    edit, bound = (container.patches for container in axes.containers if hasattr(container, "patches"))
    assert [bar.get_height() for bar in edit] == [50, 0]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in (*edit, *bound)]
    assert middles == pytest.approx([-0.85 / 3, 1 - 0.85 / 3, 1 + 0.85 / 3])
    assert bound[0].get_facecolor() != edit[0].get_facecolor()
    (line,) = axes.collections[0].get_segments()[:1]
    np.testing.assert_allclose(line[:, 1], [40, 70])
