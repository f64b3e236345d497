"""Built mazes: as drawn, playable, and byte for byte what the game gives back."""

from collections import deque

import numpy as np
import pytest

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import (
    DIRECTIONS,
    ENTITIES,
    HeistPart,
    check_playable,
    corner_maze,
    cross_maze,
    draw_maze,
    empty_room,
    label_states,
    occupied_cells,
    pickup_order,
    t_maze,
    write_maze,
)
from environments.state import WALL
from interpretability.oracle_play import play_oracle_from


@pytest.fixture(scope="module", params=["easy", "hard"])
def env(request):
    env = VectorEnvironment(EnvironmentSettings("heist", request.param, num_threads=0), 24, seed=4)
    env.observe()
    yield env
    env.close()


@pytest.fixture(scope="module")
def state(env) -> State:
    return State.from_bytes(env.get_states()[0])


def drawing(state: State) -> list[str]:
    """Rows of characters, the top one first, read from grid and entities alone."""
    rows = [["#" if what == WALL else "." for what in row] for row in state.grid]
    letters = dict(zip(ENTITIES, "bgrBGR*P", strict=True))
    for (x, y), (name,) in occupied_cells(state).items():
        rows[y][x] = letters[name]
    return ["".join(row) for row in reversed(rows)]


def cropped(state: State) -> list[str]:
    """The drawing without the solid wall around."""
    rows = [row for row in drawing(state) if set(row) != {"#"}]
    columns = [column for column in zip(*rows, strict=True) if set(column) != {"#"}]
    return ["".join(row) for row in zip(*columns, strict=True)]


def test_all_builders_round_trip_and_are_solved_in_the_game(env, state):
    middle = state.grid.shape[0] // 2
    built = [
        draw_maze(state, ["Prb", "##R", "*B."]),
        draw_maze(state, ["P.G*"], held=["green"]),
        empty_room(state),
        empty_room(state, {"gem": (middle, middle), "red_key": (middle - 1, middle)}, player=(middle - 2,) * 2, size=5),
        t_maze(state, "blue_key", "red_key"),
        t_maze(state, "gem", "green_key", stem=1, arm=4),
        cross_maze(state, {"left": "red_key", "up": "green_key", "down": "blue_key"}, length=4),
        cross_maze(state, {"left": "red_key", "up": "gem"}),
        *(corner_maze(state, "red_key", quarter_turns=turns, mirrored=m) for turns in range(4) for m in (False, True)),
        *(corner_maze(state, "gem", quarter_turns=turns, legs=(2, 6)) for turns in range(4)),
    ]
    assert len(built) <= env.num_environments
    data = [made.to_bytes() for made in built]
    slots = range(len(data))
    env.set_states(data, slots)
    env.observe()
    assert env.get_states(slots) == data
    assert play_oracle_from(data, settings=env.settings).solved.all()


def test_drawings_come_out_as_drawn(state):
    rows = ["b.#r", "P#.G", "*.##"]
    made = draw_maze(state, rows, held=["green"])
    assert cropped(made) == rows
    part = HeistPart.from_tail(made.tail)
    assert (part.num_keys, part.has_keys) == (3, [False, True, False])
    assert made.level_seed == state.level_seed
    assert {k: v for k, v in made.fields.items() if isinstance(v, bytes)} == {
        k: v for k, v in state.fields.items() if isinstance(v, bytes)
    }
    assert made.fields["background_index"] == state.fields["background_index"]
    assert HeistPart.from_tail(draw_maze(state, ["P*"]).tail).has_keys == []


def test_shapes_of_the_mazes(state):
    assert cropped(t_maze(state, "blue_key", "red_key", stem=2, arm=2)) == [
        "b...r", "##.##", "##P##", "##B##", "##R##", "##*##",
    ]  # fmt: skip
    assert cropped(cross_maze(state, {"left": "gem", "up": "red_key", "right": "blue_key"}, length=2)) == [
        "##r##", "##.##", "*.P.b",
    ]  # fmt: skip
    assert cropped(cross_maze(state, {"left": "red_key", "right": "blue_key"}, length=2))[-2:] == ["##B##", "##*##"]
    assert cropped(corner_maze(state, "green_key", legs=(2, 3))) == ["####g", "####.", "####.", "*GP.."]
    assert cropped(corner_maze(state, "gem", legs=(2, 2), mirrored=True)) == ["*##", ".##", "..P"]
    assert cropped(corner_maze(state, "gem", legs=(1, 3), quarter_turns=1)) == ["*...", "###P"]
    assert cropped(corner_maze(state, "red_key", legs=(2, 1), aside=True)) == ["##r", "P..", "R##", "*##"]
    assert cropped(corner_maze(state, "gem", legs=(2, 3), blocked=4)) == [".#*", ".#.", ".#.", "P.."]
    ring = corner_maze(state, "gem", legs=(2, 3), blocked=3, quarter_turns=1, player=(4, 2))
    assert cropped(ring) == ["*...", ".##.", "#..P"]
    assert occupied_cells(ring) == {(4, 2): ["player"], (1, 4): ["gem"]}


def test_corners_are_eight_different_pictures_of_one_length(state):
    corners = [corner_maze(state, "blue_key", quarter_turns=t, mirrored=m) for t in range(4) for m in (False, True)]
    labels = label_states([corner.to_bytes() for corner in corners])
    assert len({tuple(drawing(corner)) for corner in corners}) == 8
    assert set(labels.path_length.tolist()) == {6}
    assert [DIRECTIONS[d] for d in labels.direction[::2]] == ["right", "up", "left", "down"]
    assert [DIRECTIONS[d] for d in labels.direction[1::2]] == ["left", "down", "right", "up"]


def test_an_empty_room_is_empty(state):
    side = state.grid.shape[0]
    room = empty_room(state)
    assert (room.grid != WALL).all()
    assert occupied_cells(room) == {(side // 2, side // 2): ["player"], (side - 1, side - 1): ["gem"]}
    assert pickup_order(room) == ["gem"]
    small = empty_room(state, {"gem": (side // 2 + 1, side // 2)}, size=3)
    assert (small.grid != WALL).sum() == 9


def test_things_are_scattered_as_the_game_scatters_them(state):
    floor = np.ones(state.grid.shape, dtype=bool)
    things = [("blue_key", (1, 1)), ("gem", (3, 3)), ("blue_lock", (5, 5))]
    offsets = []
    for seed in range(50):
        made = write_maze(state, floor, things, (0, 0), rng=np.random.default_rng(seed))
        offsets.append([(e["x"] % 1 - 0.5, e["y"] % 1 - 0.5) for e in made.entities[:4]])
    offsets = np.abs(offsets)
    assert (offsets[:, [0, 3]] == 0).all()
    assert (offsets[:, 1:3].max(0) > 0.1).all()
    assert (offsets <= 0.125 + 1e-6).all()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda s: draw_maze(s, ["P.", "*"]), "lines of one length"),
        (lambda s: draw_maze(s, []), "at least one"),
        (lambda s: draw_maze(s, ["." * 14]), "does not fit this world"),
        (lambda s: draw_maze(s, ["Px"]), "'x' means nothing"),
        (lambda s: draw_maze(s, ["b*"]), "one player P, this one has 0"),
        (lambda s: check_playable(draw_maze(s, ["PB*"])), "blue_lock at .* has no blue key"),
        (lambda s: empty_room(s, size=14), "does not fit"),
        (lambda s: empty_room(s, {"blue_lock": (4, 4)}, player=(5, 5)), "no gem"),
        (lambda s: empty_room(s, {"gem": (0, 0), "blue_lock": (4, 4)}, player=(5, 5)), "no blue key"),
        (lambda s: empty_room(s, {"gem": (0, 0)}, size=3), "inside a wall or outside, at \\(0, 0\\)"),
        (lambda s: empty_room(s, {"gem": (4, 4)}, player=(4, 4)), "player and gem would share"),
        (lambda s: cross_maze(s, {"north": "gem"}), "'north' is no direction"),
        (lambda s: cross_maze(s, {"up": "gem", "down": "gem"}), "in one place only"),
        (lambda s: cross_maze(s, {"up": "blue_lock"}), "nothing to fetch"),
        (lambda s: cross_maze(s, {"up": "gem"}, length=7), "do not fit the world"),
        (lambda s: cross_maze(s, {"up": "gem"}, length=0), "has no room"),
        (lambda s: t_maze(s, "gem", "yellow_key"), "no entity of heist"),
        (lambda s: t_maze(s, "gem", "red_key", stem=0), "leaves the player no way"),
        (lambda s: t_maze(s, "gem", "red_key", arm=7), "does not fit this world"),
        (lambda s: corner_maze(s, "gem", legs=(0, 3)), "no corner"),
        (lambda s: corner_maze(s, "gem", blocked=6), "not on the way"),
        (lambda s: corner_maze(s, "gem", player=(0, 0), mirrored=True), "leaves the world"),
        (lambda s: write_maze(s, np.ones((3, 3), bool), [], (0, 0)), "same shape"),
    ],
)
def test_impossible_mazes_say_why(state, build, reason):
    with pytest.raises(ValueError, match=reason):
        build(state)


def naive_distance(state: State, goal: tuple[int, int]) -> int:
    """Moves to a cell without regard to locks."""
    ((start, _),) = [(cell, names) for cell, names in occupied_cells(state).items() if "player" in names]
    seen, queue = {start: 0}, deque([start])
    while queue:
        x, y = queue.popleft()
        for other in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)):
            inside = min(other) >= 0 and max(other) < state.grid.shape[0]
            if inside and state.grid[other[1], other[0]] != WALL and other not in seen:
                seen[other] = seen[x, y] + 1
                queue.append(other)
    return seen[goal]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_every_arm_of_a_cross_is_as_long(state, length):
    arms = dict(zip(DIRECTIONS, ("blue_key", "gem", "green_key", "red_key"), strict=True))
    made = cross_maze(state, arms, length=length)
    where = {names[0]: cell for cell, names in occupied_cells(made).items()}
    assert {naive_distance(made, where[name]) for name in arms.values()} == {length}
