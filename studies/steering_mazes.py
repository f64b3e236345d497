"""Mazes of choices as the steering study counts in them."""

from dataclasses import dataclass

import numpy as np

from environments.heist import ENTITIES
from interpretability.choices import NOTHING
from interpretability.perception import SEEN


@dataclass(frozen=True)
class Mazes:
    """Mazes with what the unedited agent touches first in them.

    Attributes:
        states: of the mazes.
        pairs: the two entities of each.
        touched: index into `ENTITIES`, or -1.
    """

    states: list[bytes]
    pairs: list[tuple[str, str]]
    touched: np.ndarray

    def counted(self, entity: str) -> list[int]:
        """Mazes with the entity in which another is touched first."""
        asked = ENTITIES.index(entity)
        return [
            row
            for row, (pair, touched) in enumerate(zip(self.pairs, self.touched.tolist(), strict=True))
            if entity in pair and touched not in (asked, NOTHING)
        ]


def preferred_entities(mazes: Mazes) -> dict[str, int]:
    """For each entity, which of the others the unedited agent most often takes first, of the mazes that have it."""
    taken = {
        name: np.mean([
            touched == ENTITIES.index(name)
            for pair, touched in zip(mazes.pairs, mazes.touched.tolist(), strict=True)
            if name in pair
        ] or [0.0])
        for name in SEEN
    }  # fmt: skip
    order = sorted(SEEN, key=lambda name: -taken[name])
    return {entity: SEEN.index(next(name for name in order if name != entity)) for entity in SEEN}
