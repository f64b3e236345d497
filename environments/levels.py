"""Which levels may be used for what. Data are split by level seed, never by frame."""

from typing import Final, Literal

Split = Literal["train", "validation", "test"]

VALIDATION_LEVELS: Final = range(50_000)
TEST_LEVELS: Final = range(50_000, 100_000)
TRAINING_START: Final = 100_000
TRAINING_COUNT: Final = 2**31 - 1 - TRAINING_START


def held_out_levels(split: Literal["validation", "test"], count: int, offset: int = 0) -> range:
    """`count` fixed level seeds of a held-out split, beginning `offset` levels into it.

    Raises:
        ValueError: the split has fewer levels.
    """
    levels = {"validation": VALIDATION_LEVELS, "test": TEST_LEVELS}[split]
    if count < 1 or offset < 0 or offset + count > len(levels):
        raise ValueError(
            f"{count} {split} levels from offset {offset} asked for, the split has {len(levels)}: ask for fewer"
        )
    return levels[offset : offset + count]
