import numpy as np
import pytest
import torch

from datamodules import ProbeBatch
from datamodules.probe_batch import Examples, Subject, pixels_on_grid, seen_as

PIXELS = Subject("pixels", "pixels", (3, 64, 64), (3, 26, 26))


def laid_out(acts: torch.Tensor, grid: Subject) -> torch.Tensor:
    batch = ProbeBatch(PIXELS, {"test": Examples(acts.bfloat16(), {}, torch.arange(len(acts)))})
    return seen_as(batch, grid).examples["test"].activations.float()


@pytest.mark.parametrize(("side", "times"), [(13, 2), (26, 1), (2, 13)])
def test_each_position_has_its_own_pixels(side: int, times: int) -> None:
    grid = pixels_on_grid(PIXELS, side, side)
    assert grid == ("pixels", f"pixels_{side}x{side}", *2 * [(3 * times**2, side, side)])
    acts = torch.randn(2, 3, 26, 26, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    found = laid_out(acts, grid)
    for row, column in np.ndindex(side, side):
        inside = acts[:, :, row * times : (row + 1) * times, column * times : (column + 1) * times]
        assert torch.equal(found[:, :, row, column], inside.flatten(1))


def test_a_grid_that_does_not_divide_the_pixels() -> None:
    """Eight places of three pixels a side, from 26: what lies in a place is seen there, and next to it at most."""
    grid = pixels_on_grid(PIXELS, 8, 8)
    assert grid.reduced == (27, 8, 8)
    acts = torch.zeros(1, 3, 26, 26)
    acts[:, :, 11:13, 20:23] = 1  # the middle of row 3 (9.75 to 13) and column 6 (19.5 to 22.75)
    found = laid_out(acts, grid)[0].sum(0)
    assert np.unravel_index(found.argmax(), (8, 8)) == (3, 6)
    assert found[3, 6] > 0.6 * found.sum()
    even = laid_out(torch.full((1, 3, 26, 26), 5.0), grid)
    assert (even == 5).all()


def test_what_needs_no_grid_is_left_alone() -> None:
    batch = ProbeBatch(PIXELS, {})
    assert seen_as(batch, PIXELS) is batch
