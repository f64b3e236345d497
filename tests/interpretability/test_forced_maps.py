import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State
from environments.heist import empty_room, label_states
from interpretability.episodes import first_states, play_episodes
from interpretability.forced_maps import CLEARED, forced_maps, resting_values
from interpretability.unit_maps import played_frames, unit_maps
from interpretability.unit_numbers import entity_positions
from networks import CustomCNN, SparseAutoencoder

EASY = EnvironmentSettings()
CELLS = [(0, 0), (8, 3), (4, 8)]
UNITS = torch.tensor([[1], [0], [2]])
HEIGHTS = torch.tensor([5.0, 7.0, 0.0])


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_peak_stands_where_an_entity_would(size: int) -> None:
    """The position is one of those that labels give an entity in that cell; a whole cell is all of them."""
    acts = torch.rand(3, 3, size, size)
    base = State.from_bytes(first_states([0], EASY)[0])
    for whole in (False, True):
        edit = forced_maps("peak", UNITS, CELLS, 9, (size, size), heights=HEIGHTS, whole_cell=whole)
        edit.assign(torch.arange(3))
        new = edit(acts)
        for row, (cell, (unit,)) in enumerate(zip(CELLS, UNITS.tolist(), strict=True)):
            labels = label_states([empty_room(base, {"gem": cell}, player=(4, 4)).to_bytes()])
            cells, side = (torch.from_numpy(values) for values in (labels.cells, labels.world_dim))
            there = entity_positions(cells, side, size, size)[6, 0]
            high = new[row, unit] > 0
            assert set(new[row, unit].unique().tolist()) <= {0.0, float(HEIGHTS[unit])}
            assert not (high & ~there).any()
            assert int(high.sum()) == (0 if HEIGHTS[unit] == 0 else int(there.sum()) if whole else 1)
            others = [other for other in range(3) if other != unit]
            assert torch.equal(new[row, others], acts[row, others])


def test_clears_only_around_the_place() -> None:
    acts = torch.ones(3, 3, 64, 64)
    edit = forced_maps("clear", UNITS, CELLS, 9, (64, 64), heights=HEIGHTS)
    edit.assign(torch.arange(3))
    new = edit(acts)
    for row, (cell, (unit,)) in enumerate(zip(CELLS, UNITS.tolist(), strict=True)):
        for y in range(0, 64, 5):
            for x in range(0, 64, 5):
                place = ((x + 0.5) * 9 / 64, 9 - (y + 0.5) * 9 / 64)
                near = max(abs(place[0] - cell[0] - 0.5), abs(place[1] - cell[1] - 0.5)) <= CLEARED
                assert new[row, unit, y, x] == (0 if near else 1)
    with pytest.raises(ValueError, match="give sources"):
        forced_maps("patch", UNITS, CELLS, 9, (64, 64), heights=HEIGHTS)


def test_units_that_fall_below_zero_are_at_rest_at_their_median() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(20, 3, 9, 9, generator=generator) + torch.tensor([0.0, 3.0, -2.0])[:, None, None]
    rest = resting_values(maps)
    assert rest.tolist() == pytest.approx([float(np.median(maps[:, unit])) for unit in range(3)], abs=0.01)
    assert resting_values(maps.relu()).tolist() == [0, 0, 0]
    edits = [forced_maps(how, UNITS, CELLS, 9, (9, 9), heights=HEIGHTS, rest=rest) for how in ("peak", "clear")]
    for edit in edits:
        edit.assign(torch.arange(3))
    peak, clear = (edit(maps[:3]) for edit in edits)
    for row, ((x, y), (unit,)) in enumerate(zip(CELLS, UNITS.tolist(), strict=True)):
        place = (8 - y, x)
        assert peak[row, unit][place] == HEIGHTS[unit]
        assert (peak[row, unit] == rest[unit]).sum() == 9 * 9 - 1
        near = torch.zeros(9, 9, dtype=torch.bool)
        near[max(place[0] - 1, 0) : place[0] + 2, max(place[1] - 1, 0) : place[1] + 2] = True
        assert torch.equal(clear[row, unit], torch.where(near, rest[unit], maps[row, unit]))


def test_frames_of_play_and_what_units_make_of_them() -> None:
    torch.manual_seed(0)
    agent, sae = CustomCNN().eval(), SparseAutoencoder(32, 1)
    seen: list[np.ndarray] = []
    known = {"settings": EASY, "max_steps": 6, "num_environments": 3, "precision": "fp32"}
    frames = played_frames(agent, range(3), per_level=2, **known)
    play_episodes(agent, [1], observer=lambda step: seen.append(step.frames[0].copy()), **known)
    assert len(frames) == 3 * 2
    assert np.array_equal(frames[2:4], [seen[0], seen[3]])
    maps = unit_maps(agent, "conv4a", frames, precision="fp32")
    with torch.no_grad():
        acts = agent(frames, record=("conv4a",)).activations["conv4a"]
        assert torch.allclose(maps, acts, atol=1e-5)
        assert torch.allclose(
            unit_maps(agent, "conv4a", frames, sae=sae, precision="fp32"), sae.encode(acts), atol=1e-4
        )
