import numpy as np
import pytest

from environments import EnvironmentSettings, State, render_states
from environments.heist import ENTITIES, occupied_cells, replaced_entities
from interpretability.episodes import first_states

SETTINGS = EnvironmentSettings("heist", "easy")
NAMES = [name for name in ENTITIES if name != "player"]


@pytest.mark.parametrize("others", [0, 3])
def test_nothing_differs_outside_the_place(others: int) -> None:
    for level, data in enumerate(first_states(range(8), SETTINGS)):
        scenes, (x, y) = replaced_entities(
            State.from_bytes(data), np.random.default_rng(level), NAMES, others=others
        )  # fmt: skip
        frames = render_states([scene.to_bytes() for scene in scenes], SETTINGS).astype(int)
        side = scenes[0].grid.shape[0]
        edges = np.arange(64) * side / 64, (np.arange(64) + 1) * side / 64
        column = (edges[1] > x - 0.2) & (edges[0] < x + 1.2)
        row = ((edges[1] > side - 1 - y - 0.2) & (edges[0] < side - y + 0.2))[:, None]
        for name, scene, frame in zip(NAMES, scenes, frames, strict=False):
            assert occupied_cells(scene)[x, y] == [name]
            changed = np.abs(frame - frames[-1]).sum(-1) > 0
            assert changed.any()
            assert not (changed & ~(row & column)).any()
        assert (x, y) not in occupied_cells(scenes[-1])
        assert len({frame.tobytes() for frame in frames}) == len(NAMES) + 1
        around = {cell for cell, there in occupied_cells(scenes[-1]).items() if there != ["player"]}
        assert len(around) == others
        assert all(max(abs(cell[0] - x), abs(cell[1] - y)) > 1 for cell in around)


def test_refuses_what_cannot_be_put() -> None:
    state = State.from_bytes(first_states([0], SETTINGS)[0])
    with pytest.raises(ValueError, match="player is no entity"):
        replaced_entities(state, np.random.default_rng(0), ["player"])
    with pytest.raises(ValueError, match="no entity of heist"):
        replaced_entities(state, np.random.default_rng(0), ["yellow_key"])
    with pytest.raises(ValueError, match="99 others"):
        replaced_entities(state, np.random.default_rng(0), ["gem"], others=99)
