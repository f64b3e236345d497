"""Byte-exact codec of procgen's saved states: the part that every game shares.

The layout follows the `serialize` functions of openai/procgen (`procgen/src/game.cpp`, `basic-abstract-game.cpp`,
`entity.cpp`). Everything is little-endian; a bool is an int32; a string is its length and then its bytes.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int32, Shaped

Field = tuple[str, str]
Value = int | float | bytes

END_MARKER: Final = 0xCAFECAFE.to_bytes(4, "little")
WALL: Final = 51
SPACE: Final = 100


def _fields(kind: str, names: str) -> list[Field]:
    return [(name, kind) for name in names.split()]


def _random_generator(name: str) -> list[Field]:
    return [(f"{name}.is_seeded", "i"), (f"{name}.state", "s")]


_GAME: Final[list[Field]] = [
    ("version", "i"),
    ("name", "s"),
    *_fields(
        "i",
        "paint_vel_info use_generated_assets use_monochrome_assets restrict_themes use_backgrounds center_agent "
        "debug_mode distribution_mode use_sequential_levels use_easy_jump plain_assets physics_mode grid_step "
        "level_seed_low level_seed_high game_type game_n",
    ),
    *_random_generator("level_seed_rand_gen"),
    *_random_generator("rand_gen"),
    ("reward", "f"),
    *_fields(
        "i",
        "done level_complete action timeout current_level_seed prev_level_seed episodes_remaining episode_done "
        "last_reward_timer",
    ),
    ("last_reward", "f"),
    *_fields("i", "default_action fixed_asset_seed cur_time is_waiting_for_step"),
]

_BEFORE_ENTITIES: Final[list[Field]] = [*_GAME, ("grid_size", "i"), ("num_entities", "i")]

_AFTER_ENTITIES: Final[list[Field]] = [
    *_fields("i", "use_procgen_background background_index"),
    *_fields("f", "bg_tile_ratio bg_pct_x char_dim"),
    *_fields("i", "last_move_action move_action special_action"),
    *_fields("f", "mixrate maxspeed max_jump action_vx action_vy action_vrot center_x center_y"),
    *_fields("i", "random_agent_start has_useful_vel_info step_rand_int"),
    *_random_generator("asset_rand_gen"),
    *_fields("i", "main_width main_height out_of_bounds_object"),
    *_fields("f", "unit view_dim x_off y_off visibility min_visibility"),
    *_fields("i", "grid_w grid_h grid_length"),
]

_ENTITY: Final[list[Field]] = [
    *_fields("f", "x y vx vy rx ry"),
    *_fields("i", "type image_type image_theme render_z will_erase collides_with_entities"),
    *_fields("f", "collision_margin rotation vrot"),
    *_fields("i", "is_reflected fire_time spawn_time life_time expire_time use_abs_coords"),
    ("friction", "f"),
    *_fields("i", "smart_step avoids_collisions auto_erase"),
    *_fields("f", "alpha health theta grow_rate alpha_decay climber_spawn_x"),
]
ENTITY_DTYPE: Final = np.dtype([(name, "<" + kind + "4") for name, kind in _ENTITY])


class _Layout:
    """Runs of fixed-size fields compiled to one `struct.Struct` each, with the strings between them."""

    def __init__(self, fields: list[Field]) -> None:
        self._parts: list[tuple[struct.Struct, tuple[str, ...], str | None]] = []
        names: list[str] = []
        code = "<"
        for name, kind in fields:
            if kind == "s":
                self._parts.append((struct.Struct(code + "i"), tuple(names), name))
                names, code = [], "<"
            else:
                names.append(name)
                code += kind
        self._parts.append((struct.Struct(code), tuple(names), None))

    def read(self, data: bytes, offset: int, into: dict[str, Value]) -> int:
        for fixed, names, string in self._parts:
            values = fixed.unpack_from(data, offset)
            offset += fixed.size
            into.update(zip(names, values, strict=False))
            if string is not None:
                length = values[-1]
                if length < 0 or offset + length > len(data):
                    raise struct.error(f"string {string} of {length} bytes does not fit")
                into[string] = data[offset : offset + length]
                offset += length
        return offset

    def write(self, values: dict[str, Value]) -> bytes:
        out = []
        for fixed, names, string in self._parts:
            numbers = [values[name] for name in names]
            if string is None:
                out.append(fixed.pack(*numbers))
            else:
                text = values[string]
                assert isinstance(text, bytes)
                out += [fixed.pack(*numbers, len(text)), text]
        return b"".join(out)


_HEAD: Final = _Layout(_BEFORE_ENTITIES)
_MIDDLE: Final = _Layout(_AFTER_ENTITIES)


@dataclass(slots=True)
class State:
    """One environment's whole state, in the parts that every procgen game shares.

    Attributes:
        fields: scalar fields by procgen's own name; strings (the game's name, random generators) as bytes.
        entities: structured array of `ENTITY_DTYPE`; entity 0 is the player. Positions and radii are in cells.
        grid: cell types, [H W]; row 0 is the bottom of the world.
        tail: what the game itself saves after the shared part, `END_MARKER` included.
    """

    fields: dict[str, Value]
    entities: Shaped[np.ndarray, " E"]
    grid: Int32[np.ndarray, "H W"]
    tail: bytes

    @classmethod
    def from_bytes(cls, data: bytes) -> "State":
        """Parse what `get_state` returned.

        Raises:
            ValueError: the bytes are no procgen state, or one cut short.
        """
        fields: dict[str, Value] = {}
        try:
            offset = _HEAD.read(data, 0, fields)
            count = int(fields["num_entities"])
            entities = np.frombuffer(data, ENTITY_DTYPE, count, offset).copy()
            offset = _MIDDLE.read(data, offset + entities.nbytes, fields)
            width, height = int(fields["grid_w"]), int(fields["grid_h"])
            if fields["grid_length"] != width * height:
                raise ValueError(f"grid of {width} x {height} cells holds {int(fields['grid_length'])}")
            grid = np.frombuffer(data, "<i4", width * height, offset).reshape(height, width).copy()
        except (struct.error, ValueError) as error:
            raise ValueError(
                f"these {len(data)} bytes are no whole procgen 0.10.7 state ({error}): pass what get_states() returned"
            ) from error
        tail = data[offset + grid.nbytes :]
        if not tail.endswith(END_MARKER):
            raise ValueError("procgen state without its end marker: it was cut short, take it again with get_states()")
        return cls(fields, entities, grid, tail)

    def to_bytes(self) -> bytes:
        """The bytes that `set_state` takes; counts are taken from the arrays, so entities may come and go."""
        height, width = self.grid.shape
        self.fields.update(num_entities=len(self.entities), grid_w=width, grid_h=height, grid_length=width * height)
        return b"".join(
            (
                _HEAD.write(self.fields),
                self.entities.astype(ENTITY_DTYPE, copy=False).tobytes(),
                _MIDDLE.write(self.fields),
                self.grid.astype("<i4", copy=False).tobytes(),
                self.tail,
            )
        )

    @property
    def level_seed(self) -> int:
        """The level being played."""
        return int(self.fields["current_level_seed"])
