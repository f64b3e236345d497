"""What a probe can be asked to read: each target's values, the oracle that they come from, and its chance level.

A target of classes yields an index into its classes, -1 where there is no answer (no target, several directions as
short); such frames are left out of training and scores. Its chance level is the share of its most frequent class, the
control `majority`. A target of numbers yields one or two columns, NaN where there is no answer; its chance level is
R2 = 0, that of the mean. All but two come from the state alone; `PURSUED` and `STEPS_TO_PICKUP` need the recorded
episode's future and have no answer where the recording ends before it (or where nothing was recorded but a state).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int, Shaped

from environments.heist.layout import COLOURS, ENTITIES
from environments.heist.oracle import ACTION_STEPS, DIRECTIONS, STAY

LabelColumns = Mapping[str, Shaped[np.ndarray, "N ..."]]
"""Labels by name: the fields of `Labels`; from recorded play also `pursued` and `steps_to_pickup` (see
`datamodules.outcomes`), and `action`, the agent's likeliest."""

_PICKUPS: Final = (0, 1, 2, 6)  # keys and gem, of ENTITIES
_MOVES: Final = ("down_left", "left", "up_left", "down", "stay", "up", "down_right", "right", "up_right")


@dataclass(frozen=True)
class ClassTarget:
    """A target with a few possible answers.

    Attributes:
        name: in metric names.
        classes: names of the answers.
        oracle: where the answer comes from.
        read: labels of N frames to class indices [N], -1 where there is none.
    """

    name: str
    classes: tuple[str, ...]
    oracle: str
    read: Callable[[LabelColumns], Int[np.ndarray, " N"]]


@dataclass(frozen=True)
class NumberTarget:
    """A target of numbers, read by least squares.

    Attributes:
        name: in metric names.
        columns: names of the numbers; their mean R2 is reported.
        oracle: where they come from.
        read: labels of N frames to numbers [N columns], NaN where there is none.
    """

    name: str
    columns: tuple[str, ...]
    oracle: str
    read: Callable[[LabelColumns], Float[np.ndarray, "N D"]]


Target = ClassTarget | NumberTarget


def _index(table: Mapping[int, int], values: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    out = np.full(len(values), -1)
    for value, place in table.items():
        out[values == value] = place
    return out


def _pickup(values: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    return _index({entity: place for place, entity in enumerate(_PICKUPS)}, values)


def _after(labels: LabelColumns) -> Int[np.ndarray, " N"]:
    after = _index({1: 0, 2: 1, 0: 2, 6: 3}, labels["after_target"])
    return np.where(labels["target"] == ENTITIES.index("gem"), 4, after)


def _untied(values: Int[np.ndarray, " N"], labels: LabelColumns) -> Int[np.ndarray, " N"]:
    return np.where(labels["direction_tied"], -1, values)


def _number(values: Shaped[np.ndarray, "N ..."], known: Shaped[np.ndarray, " N"]) -> Float[np.ndarray, "N D"]:
    columns = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    return np.where(np.asarray(known)[:, None], columns, np.nan)


def _cell(entity: int) -> Callable[[LabelColumns], Float[np.ndarray, "N D"]]:
    def read(labels: LabelColumns) -> Float[np.ndarray, "N D"]:
        cells = labels["cells"][:, entity]
        return _number(cells, cells[:, 0] >= 0)

    return read


def _held(colour: int) -> Callable[[LabelColumns], Int[np.ndarray, " N"]]:
    return lambda labels: labels["held"][:, colour].astype(np.int64)


def _distance(order: int) -> Callable[[LabelColumns], Float[np.ndarray, "N D"]]:
    def read(labels: LabelColumns) -> Float[np.ndarray, "N D"]:
        steps = labels["target_cell"] + 0.5 - labels["position"]
        return _number(np.linalg.norm(steps, ord=order, axis=1), labels["target"] >= 0)

    return read


TARGET: Final = ClassTarget(
    "target",
    tuple(ENTITIES[entity] for entity in _PICKUPS),
    "next pickup on the shortest full solution (breadth-first search over cell and held keys)",
    lambda labels: _pickup(labels["target"]),
)
PURSUED: Final = ClassTarget(
    "pursued",
    ENTITIES[:7],
    "the key, lock or gem that the player touches next in the recorded episode, whatever the oracle thinks of it",
    lambda labels: labels["pursued"],
)
STEPS_TO_PICKUP: Final = NumberTarget(
    "steps_to_pickup",
    ("steps",),
    "actions until the player touches the next key or gem in the recorded episode",
    lambda labels: _number(labels["steps_to_pickup"], labels["steps_to_pickup"] >= 0),
)

TARGETS: Final[tuple[Target, ...]] = (
    TARGET,
    PURSUED,
    ClassTarget(
        "next_direction",
        DIRECTIONS,
        "first move on the shortest full solution; left out where several are as short, or in the target's cell",
        lambda labels: _untied(labels["direction"], labels),
    ),
    ClassTarget(
        "action",
        _MOVES,
        "the agent's own likeliest action; procgen's actions 9 to 14 do nothing in heist and count as stay",
        lambda labels: np.where(labels["action"] >= len(ACTION_STEPS), STAY, labels["action"]),
    ),
    ClassTarget(
        "after_target",
        ("green_key", "red_key", "blue_key", "gem", "nothing"),
        "the pickup that follows the target on the shortest full solution; nothing where the target is the gem",
        _after,
    ),
    ClassTarget(
        "wall_between",
        ("free", "wall"),
        "whether a wall stands on the straight line between the centres of the player's and the target's cells",
        lambda labels: np.where(labels["target"] >= 0, labels["wall_between"].astype(np.int64), -1),
    ),
    *(
        ClassTarget(
            f"held_{colour}_key", ("not_held", "held"), f"whether the {colour} key is on the ring", _held(index)
        )
        for index, colour in enumerate(COLOURS)
    ),
    STEPS_TO_PICKUP,
    NumberTarget(
        "path_length",
        ("moves",),
        "moves to the target along the shortest full solution",
        lambda labels: _number(labels["path_length"], labels["path_length"] >= 0),
    ),
    NumberTarget("euclidean_distance", ("cells",), "straight from the player's to the target's centre", _distance(2)),
    NumberTarget("manhattan_distance", ("cells",), "along x plus along y between the same centres", _distance(1)),
    NumberTarget(
        "straight_length",
        ("moves",),
        "moves along the next direction before the first turn or the target; left out where directions tie",
        lambda labels: _number(labels["straight_length"], (labels["straight_length"] >= 0) & ~labels["direction_tied"]),
    ),
    NumberTarget(
        "target_cell",
        ("x", "y"),
        "cell of the target, y upwards",
        lambda labels: _number(labels["target_cell"], labels["target"] >= 0),
    ),
    *(
        NumberTarget(f"{name}_cell", ("x", "y"), f"cell of the {name.replace('_', ' ')}, y upwards", _cell(index))
        for index, name in enumerate(ENTITIES)
    ),
)
"""All targets. The position form asks for the entities of `ENTITIES` and for the target instead: `positions`."""

POSITION_TARGETS: Final = (*ENTITIES, "target")
"""What the position form asks of each position of a map: is it here? Its chance level is that of `ClassTarget`."""


def choose_targets(names: list[str] | None) -> tuple[Target, ...]:
    """The targets of these names, all without names.

    Raises:
        ValueError: a name that is no target.
    """
    known = {target.name: target for target in TARGETS}
    for name in names or []:
        if name not in known:
            raise ValueError(f"there is no target {name!r}: choose among {', '.join(known)}")
    return TARGETS if names is None else tuple(known[name] for name in names)


def positions(labels: LabelColumns, height: int, width: int) -> Int[np.ndarray, "N 9"]:
    """Where on a map laid over the whole frame each of `POSITION_TARGETS` is: row * width + column; -1 where it is not.

    Row 0 is the frame's top. For modes whose frame shows the whole world (easy, hard).
    """
    centres = np.concatenate([labels["cells"] + 0.5, labels["target_cell"][:, None] + 0.5], axis=1)
    centres[:, ENTITIES.index("player")] = labels["position"]
    there = np.concatenate([labels["cells"][:, :, 0] >= 0, (labels["target"] >= 0)[:, None]], axis=1)
    side = np.asarray(labels["world_dim"])[:, None]
    column = np.floor(centres[..., 0] / side * width).astype(np.int64)
    row = np.floor((side - centres[..., 1]) / side * height).astype(np.int64)
    return np.where(there, row * width + column, -1)
