from functools import partial

import numpy as np
import pytest
import torch

from datamodules.recorder import LABELS
from datamodules.state_recorder import StateEdit, StateRecorder
from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import move_entity, read_layout, scatter_player

LEVELS = EnvironmentSettings(start_level=200_000, num_levels=40)


def to_a_corner(state: State, rng: np.random.Generator) -> State:
    maze = read_layout(state).maze
    taken = {cell for _, cell in (*maze.keys, *maze.locks)} | {maze.gem}
    free = [cell for cell, wall in enumerate(maze.walls) if not wall and cell not in taken]
    cell = free[rng.integers(2)]
    return move_entity(state, "player", (cell % 9, cell // 9))


def test_rows_show_the_edited_states() -> None:
    made = StateRecorder(LEVELS, to_a_corner, frames_per_block=70)
    counts: list[int] = []
    rows = made.block(0, progress=counts.append)
    assert made.frame_bytes() * 70 == sum(column.nbytes for column in rows.values())
    made.close()
    assert sum(counts) == 70
    assert {name.removeprefix("labels/") for name in rows} - {"levels", "frames"} == set(LABELS)
    assert rows["frames"].shape == (70, 64, 64, 3)
    assert set(rows["levels"].tolist()) <= set(range(200_000, 200_040))
    assert torch.equal(rows["levels"], rows["labels/level"])
    assert (rows["labels/pursued"] == -1).all()
    env = VectorEnvironment(LEVELS, 1)
    for row in (0, 69):
        env.play_levels([int(rows["levels"][row])])
        state = State.from_bytes(env.get_states()[0])
        cell = rows["labels/cells"][row, 7].tolist()
        env.set_states([move_entity(state, "player", (cell[0], cell[1])).to_bytes()])
        np.testing.assert_array_equal(env.observe()[1][0], rows["frames"][row].numpy())
    env.close()


def test_a_block_depends_on_its_own_index_only() -> None:
    first, second = (StateRecorder(LEVELS, scatter_player, frames_per_block=8) for _ in range(2))
    first.block(0)
    again, alone = first.block(1), second.block(1)
    assert all(torch.equal(again[name], alone[name]) for name in alone)
    assert not torch.equal(again["levels"], second.block(2)["levels"])
    first.close()
    second.close()
    other = StateRecorder(LEVELS, to_a_corner, frames_per_block=8)
    assert other.description() != first.description()


def test_other_games_are_refused() -> None:
    with pytest.raises(ValueError, match="states of heist"):
        StateRecorder(EnvironmentSettings(game="maze"), scatter_player, frames_per_block=8)
    edits: tuple[StateEdit, ...] = (lambda state, rng: state, partial(scatter_player))
    for nameless in edits:
        with pytest.raises(ValueError, match="give a function of a module"):
            StateRecorder(LEVELS, nameless, frames_per_block=8)
