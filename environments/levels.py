"""Which levels may be used for what. Data are split by level seed, never by frame."""

from typing import Final, Literal

VALIDATION_LEVELS: Final = range(50_000)
TEST_LEVELS: Final = range(50_000, 100_000)
TRAINING_START: Final = 100_000
TRAINING_COUNT: Final = 2**31 - 1 - TRAINING_START


def refuse_held_out(start_level: int) -> None:
    """Raise ValueError where training would begin on held-out levels."""
    if start_level < TRAINING_START:
        raise ValueError(
            f"environment.start_level {start_level} would train on held-out levels: begin at {TRAINING_START} or above"
        )


def held_out_levels(split: Literal["validation", "test"], count: int, offset: int = 0) -> range:
    """`count` fixed level seeds of a held-out split, beginning `offset` levels into it.

    Raises:
        ValueError: fewer than one, or more than the split has.
    """
    levels = {"validation": VALIDATION_LEVELS, "test": TEST_LEVELS}[split]
    if not 0 <= offset < len(levels):
        raise ValueError(f"offset {offset} is outside the {len(levels)} {split} levels: give 0 to {len(levels) - 1}")
    if not 1 <= count <= len(levels) - offset:
        after = f" from offset {offset}" if offset else ""
        raise ValueError(f"{count} {split} levels asked for{after}: ask for 1 to {len(levels) - offset}")
    return levels[offset : offset + count]
