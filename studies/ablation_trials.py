"""Playing the same levels while each of many sets of units is taken away, and what that changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from environments import EnvironmentSettings
from interpretability.ablations import AblationKind, UnitAblation, replacements
from interpretability.choices import Choices, play_choices
from interpretability.episodes import play_episodes
from interpretability.signed_taps import falls_below_zero
from interpretability.unit_numbers import UnitNumbers
from networks import Edit, Precision, SAEBase, TappedAgent
from studies.kept_arms import kept_arm

CHANGED: Final = "another choice"
LOST: Final = "return lost"
KEYS: Final = {CHANGED: "changed", LOST: "return_loss"}
"""Effects of an ablation, as they are called on pages and in summaries."""


@dataclass(frozen=True)
class Levels:
    """What an ablation is tried on.

    Attributes:
        mazes: saved states of mazes of choices.
        natural: seeds of levels that are played as they are.
    """

    mazes: Sequence[bytes]
    natural: Sequence[int] = ()


@dataclass(frozen=True)
class Outcomes:
    """What came of T sets of units taken away, each in the same M mazes of choices and on the same N natural levels.

    Attributes:
        touched: index into `ENTITIES` of what was touched first; -1 for nothing.
        returns: of natural levels.
        solved: likewise.
    """

    touched: Int[np.ndarray, "T M"]
    returns: Float[np.ndarray, "T N"]
    solved: Bool[np.ndarray, "T N"]

    def changed(self, clean: "Outcomes") -> Float[np.ndarray, "T M"]:
        """1 where another entity, or nothing, is touched first than by the agent that is left alone."""
        return (self.touched != clean.touched).astype(np.float64)

    def lost(self, clean: "Outcomes") -> Float[np.ndarray, "T N"]:
        """Return of the agent that is left alone, less that of the ablated one."""
        return (clean.returns - self.returns).astype(np.float64)

    def effects(self, clean: "Outcomes") -> dict[str, Float[np.ndarray, "T L"]]:
        """Each effect of each set on each level; without natural levels the first alone."""
        found = {CHANGED: self.changed(clean)}
        return found | ({LOST: self.lost(clean)} if self.returns.shape[1] else {})

    def select(self, rows: Sequence[int]) -> "Outcomes":
        """Those of some of the sets."""
        chosen = list(rows)
        return Outcomes(self.touched[chosen], self.returns[chosen], self.solved[chosen])


@dataclass(frozen=True)
class AblationTrials:
    """Plays an agent, many ablations in one batch.

    Attributes:
        agent: who plays.
        tap: whose units are taken away.
        sae: whose latents they are; None for the tap's own.
        maps: of all units on validation frames: means and other frames' activations are of these.
        settings, seed, num_environments, precision: as for `play_episodes`.
        max_steps: in a maze of choices, until something is touched.
        natural_steps: on a natural level.
        cache_dir: folder in which outcomes are kept.
    """

    agent: TappedAgent
    tap: str
    sae: SAEBase | None
    maps: Float[Tensor, "F U *HW"]
    settings: EnvironmentSettings
    seed: int
    num_environments: int
    max_steps: int
    natural_steps: int
    precision: Precision
    cache_dir: str

    @property
    def num_units(self) -> int:
        """U."""
        return self.maps.shape[1]

    @cached_property
    def co_activity(self) -> Float[np.ndarray, "U U"]:
        """Correlation between being active at the same position of the maps (on a tap that falls below 0, of the
        activations), see `UnitNumbers.co_activity`.
        """
        numbers = UnitNumbers(self.num_units, falls_below_zero(self.agent, self.tap, self.sae))
        numbers.update(self.maps if self.maps.ndim == 4 else self.maps[:, :, None, None])
        return numbers.co_activity()

    def clean(self, levels: Levels, *, more_seed: int = 0) -> Outcomes:
        """The agent that is left alone, as one set; with `more_seed` under other noise."""
        return self._play([], 1, levels, "no ablation", self.seed + more_seed)

    def without(self, sets: Sequence[Sequence[int]], kind: AblationKind, levels: Levels) -> Outcomes:
        """What comes of each set of units, taken away in one of three ways; an empty set takes nothing away."""
        edits = [self._edit(sets, kind)]
        return self._play(edits, len(sets), levels, f"{kind}, {len(sets)} sets", self.seed)

    def choices(self, mazes: Sequence[bytes], sets: Sequence[Sequence[int]], kind: AblationKind) -> Choices:
        """How one set of units taken away plays some mazes, step by step; no set plays the agent left alone."""
        edits = [self._edit(sets, kind)] if sets else []
        return self._choose(mazes, edits, 1, self.seed, None)

    def _edit(self, sets: Sequence[Sequence[int]], kind: AblationKind) -> Edit:
        masks = torch.zeros(len(sets), self.num_units, dtype=torch.bool)
        for row, units in enumerate(sets):
            masks[row, list(units)] = True
        edit = UnitAblation(masks, replacements(kind, self.maps), self.sae, self.seed)
        return self.tap, edit.to(next(self.agent.parameters()).device)

    def _choose(
        self, mazes: Sequence[bytes], edits: Sequence[Edit], sets: int, seed: int, title: str | None
    ) -> Choices:
        """Every set in every maze."""
        return play_choices(
            self.agent, list(mazes) * sets, settings=self.settings, edits=edits,
            trials=np.repeat(np.arange(sets), len(mazes)), seed=seed, num_environments=self.num_environments,
            max_steps=self.max_steps, precision=self.precision, progress=title,
        )  # fmt: skip

    def _play(self, edits: Sequence[Edit], sets: int, levels: Levels, title: str, seed: int) -> Outcomes:
        """All sets in all mazes and on all levels; what was played before is not played again."""
        known = {
            "sets": sets, "natural": list(levels.natural), "seed": seed, "max_steps": self.max_steps,
            "natural_steps": self.natural_steps, "environments": self.num_environments, "precision": self.precision,
            "mode": self.settings.distribution_mode,
        }  # fmt: skip
        kept = kept_arm(
            self.cache_dir, self.agent, edits, self.sae, levels.mazes, known,
            lambda: self._outcomes(edits, sets, levels, title, seed),
        )  # fmt: skip
        touched, returns, solved = (np.array(kept[name]).reshape(sets, -1) for name in ("touched", "returns", "solved"))
        return Outcomes(touched, returns, solved.astype(bool))

    def _outcomes(
        self, edits: Sequence[Edit], sets: int, levels: Levels, title: str, seed: int
    ) -> dict[str, list[int]]:
        """Either of mazes and natural levels may be empty."""
        natural = len(levels.natural)
        found: dict[str, list[int]] = {"touched": [], "returns": [], "solved": []}
        if levels.mazes:
            found["touched"] = self._choose(levels.mazes, edits, sets, seed, f"{title}, mazes").touched.tolist()
        if natural:
            played = play_episodes(
                self.agent, list(levels.natural) * sets, settings=self.settings, edits=edits,
                trials=np.repeat(np.arange(sets), natural), seed=seed, num_environments=self.num_environments,
                max_steps=self.natural_steps, precision=self.precision, progress=f"{title}, levels",
            )  # fmt: skip
            found |= {"returns": played.returns.tolist(), "solved": played.solved.astype(int).tolist()}
        return found
