"""Rows of heist's entities as the game makes them, so that what is added cannot be told from what was there."""

from typing import Final

import numpy as np
from jaxtyping import Shaped

from environments.heist.layout import COLOURS, ENTITIES, GEM, KEY, KEY_ON_RING, LOCK, Cell
from environments.state import ENTITY_DTYPE

# In procgen's own precision, so that rows come out as the game's to the last bit.
_KEY_ASPECT: Final = np.float32(21 / 13)  # width / height of procgen's pictures
_GEM_ASPECT: Final = np.float32(35 / 24)
_RADIUS: Final = np.float32(0.375)
_RING_RADIUS: Final = np.float32(0.03)  # of the frame's width
_DEFAULTS: Final = {
    "fire_time": -1, "spawn_time": -1, "expire_time": -1, "friction": 1, "auto_erase": 1, "alpha": 1, "health": 1,
    "theta": -100, "grow_rate": 1, "alpha_decay": 1,
}  # fmt: skip


def new_entity(name: str, cell: Cell) -> Shaped[np.ndarray, " 1"]:
    """A key, lock or gem in the centre of a cell.

    Raises:
        ValueError: the name is not in `ENTITIES`, or is the player, of whom there is always one.
    """
    check_name(name)
    if name == "player":
        raise ValueError("a state has exactly one player: move it instead of adding one")
    row = _blank()
    row["x"], row["y"] = cell[0] + 0.5, cell[1] + 0.5
    if name == "gem":
        row["type"] = row["image_type"] = GEM
        row["rx"], row["ry"] = _RADIUS, _RADIUS / _GEM_ASPECT
        return row
    colour, what = name.split("_")
    row["type"] = row["image_type"] = LOCK if what == "lock" else KEY
    row["image_theme"] = COLOURS.index(colour)
    row["rx"], row["ry"] = (0.5, 0.5) if what == "lock" else (_RADIUS, _RADIUS / _KEY_ASPECT)
    return row


def ring_icon(colour: int) -> Shaped[np.ndarray, " 1"]:
    """The icon of a key on the ring at the frame's lower right; the game draws it while the key is held."""
    row = _blank()
    radius = float(_RING_RADIUS)
    row["x"], row["y"] = 1 - radius * (2 * colour + 1.25), radius * 0.75
    row["rx"], row["ry"] = _RING_RADIUS, _RING_RADIUS / _KEY_ASPECT
    row["type"], row["image_type"], row["image_theme"] = KEY_ON_RING, KEY, colour
    row["render_z"], row["use_abs_coords"], row["rotation"] = 1, 1, np.pi / 2
    return row


def join_rows(*rows: Shaped[np.ndarray, " N"]) -> Shaped[np.ndarray, " N"]:
    """Rows one after the other; `np.concatenate` takes some 20 times as long for a maze, to find their common type."""
    return np.frombuffer(b"".join(row.tobytes() for row in rows), ENTITY_DTYPE).copy()


def entity_name(kind: int, theme: int) -> str:
    """Name of a key, lock or gem by procgen's type and theme."""
    return "gem" if kind == GEM else f"{COLOURS[theme]}_{'lock' if kind == LOCK else 'key'}"


def check_name(name: str) -> None:
    """Refuse a name that is not in `ENTITIES`."""
    if name not in ENTITIES:
        raise ValueError(f"{name!r} is no entity of heist: choose one of {', '.join(ENTITIES)}")


def colour_index(colour: str) -> int:
    """Procgen's theme of a colour.

    Raises:
        ValueError: heist has no keys of this colour.
    """
    if colour not in COLOURS:
        raise ValueError(f"{colour!r} is no colour of heist's keys: choose one of {', '.join(COLOURS)}")
    return COLOURS.index(colour)


def _blank() -> Shaped[np.ndarray, " 1"]:
    row = np.zeros(1, ENTITY_DTYPE)
    for field, value in _DEFAULTS.items():
        row[field] = value
    return row
