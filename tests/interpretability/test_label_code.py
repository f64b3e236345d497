import numpy as np
import pytest
import torch
from torch.nn import functional

from environments import EnvironmentSettings, State
from environments.heist import ENTITIES, give_key, label_states
from environments.heist.oracle import DIRECTIONS
from environments.state import WALL
from interpretability.episodes import first_states
from interpretability.label_code import PLAN, SCENE, LabelCode, Written, fit_code, label_maps, way_cells

EASY = EnvironmentSettings()


def test_maps_of_one_position_a_cell_are_the_cells() -> None:
    states = first_states(range(4), EASY)
    maps = label_maps(states, 9, 9, len(SCENE) + len(PLAN))
    labels = label_states(states)
    assert torch.equal(label_maps(states, 9, 9, len(SCENE) + 1), maps[:, : len(SCENE) + 1])
    assert maps.shape == (4, len(SCENE) + len(PLAN), 9, 9)
    for row, state in enumerate(states):
        parsed = State.from_bytes(state)
        assert torch.equal(maps[row, 0], torch.from_numpy((parsed.grid == WALL)[::-1].astype(np.float32)))
        for place, name in enumerate(SCENE[1:-4], start=1):
            expected = torch.zeros(9, 9)
            x, y = labels.cells[row, ENTITIES.index(name)]
            if x >= 0:
                expected[8 - y, x] = 1
            assert torch.equal(maps[row, place], expected)
        assert not maps[row, len(SCENE) - 3 : len(SCENE)].any()
        x, y = labels.target_cell[row]
        assert torch.nonzero(maps[row, len(SCENE)]).tolist() == [[8 - y, x]]
        way = way_cells(parsed)
        assert len(way) == labels.path_length[row] == maps[row, len(SCENE) + 1].sum()
        assert way[-1] == y * 9 + x
        steps = np.abs(np.diff([(cell % 9, cell // 9) for cell in way], axis=0)).sum(1)
        assert (steps == 1).all()
        going = maps[row, len(SCENE) + 2 :].sum((1, 2))
        assert len(going) == len(DIRECTIONS)
        assert going.count_nonzero() == (not labels.direction_tied[row])
    held = label_maps([give_key(State.from_bytes(states[0]), "blue", new_colours=True).to_bytes()], 9, 9)
    assert torch.equal(held[0, len(SCENE) - 3], torch.ones(9, 9))


@pytest.mark.parametrize("size", [8, 16, 32])
def test_maps_keep_the_area_of_what_lies_there(size: int) -> None:
    states = first_states(range(3), EASY)
    fine, coarse = label_maps(states, 9, 9), label_maps(states, size, size)
    torch.testing.assert_close(coarse.sum((2, 3)) / size**2, fine.sum((2, 3)) / 81, atol=1e-5, rtol=1e-5)
    assert coarse.max() <= 1 + 1e-6


def test_the_player_moves_between_cells() -> None:
    state = State.from_bytes(first_states([0], EASY)[0])
    before = label_maps([state.to_bytes()], 9, 9)[0, SCENE.index("player")]
    state.entities["x"][0] += 0.25
    after = label_maps([state.to_bytes()], 9, 9)[0, SCENE.index("player")]
    row, column = divmod(int(before.argmax()), 9)
    assert after[row, column + 1] - before[row, column + 1] == pytest.approx(0.25, abs=1e-5)
    assert after.sum() == pytest.approx(1, abs=1e-5)


def test_a_planted_convolution_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(40, 3, 6, 6, generator=generator)
    weight = torch.randn(2, 3, 3, 3, generator=generator)
    place = torch.randn(2, 6, 6, generator=generator)
    acts = functional.conv2d(maps, weight, padding=1) + place
    code = fit_code(maps, acts, kernel=3, penalty=1e-9)
    torch.testing.assert_close(code.weight, weight, atol=1e-3, rtol=0)
    torch.testing.assert_close(code(maps), acts, atol=1e-3, rtol=0)
    assert code.floor == -torch.inf
    positive = fit_code(maps, acts.clamp(min=0), kernel=3)
    assert positive(maps).min() == 0, "what a ReLU never yields is not written"


def test_a_flat_tap_is_fitted_like_numpy_would() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, acts = torch.rand(60, 2, 3, 3, generator=generator), torch.randn(60, 4, generator=generator)
    code = fit_code(maps, acts, penalty=1e-12)
    design = np.concatenate([maps.flatten(1).numpy(), np.ones((60, 1))], 1)
    expected = design @ np.linalg.lstsq(design, acts.numpy(), rcond=None)[0]
    np.testing.assert_allclose(code(maps).numpy(), expected, atol=1e-4)


def test_refuses_what_does_not_fit() -> None:
    maps, acts = torch.rand(4, 2, 6, 6), torch.rand(4, 3, 6, 6)
    with pytest.raises(ValueError, match="kernel 2"):
        fit_code(maps, acts, kernel=2)
    with pytest.raises(ValueError, match="make them alike"):
        fit_code(maps[..., :5], acts)
    written = Written(LabelCode(torch.zeros(3, len(SCENE), 1, 1), torch.zeros(len(SCENE), 6, 6), acts[0], 0.0))
    written.see(first_states([0, 1], EASY))
    assert torch.equal(written(acts[:2]), acts[[0, 0]])
    with pytest.raises(AssertionError, match="see is told"):
        written(acts)
