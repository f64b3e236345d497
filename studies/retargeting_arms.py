"""The arms of the retargeting study: what is touched first with each edit and control, kept as it is played."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from environments import EnvironmentSettings, State
from environments.heist import ENTITIES, recolour, swap_entities
from interpretability.choices import NOTHING, Choices, play_choices, play_to_end
from interpretability.kept import Kept, edit_hashes
from interpretability.statistics import Interval, wilson_interval
from networks import Edit, Precision, TappedAgent
from networks.channel_edit import RandomDirection, ShamPosition, TapEdit, on_random_units
from networks.weights import hash_tensors
from studies.retargeting_search import ASKED


class Outcome(NamedTuple):
    """What came of an arm in n of the counted mazes.

    Attributes:
        hit: the asked entity (of the bounds: what was put in its place) was touched first.
        nothing: nothing was touched.
        rows: which of the counted mazes.
    """

    hit: Bool[np.ndarray, " n"]
    nothing: Bool[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]

    @property
    def share(self) -> Interval:
        """Of the mazes with a hit, with Wilson's bounds."""
        return wilson_interval(int(self.hit.sum()), len(self.hit))

    @property
    def no_touch(self) -> float:
        """Share of the mazes in which nothing was touched."""
        return float(self.nothing.mean())

    def where(self, chosen: Bool[np.ndarray, " N"]) -> "Outcome":
        """The part in some of the counted mazes."""
        part = chosen[self.rows]
        return Outcome(self.hit[part], self.nothing[part], self.rows[part])


class RetargetingArms:
    """Plays every arm in the same mazes with the same noise; what was played before is found again.

    Args:
        agent: that is edited.
        edits: at which tap what is changed, by asked entity.
        mazes: of choices.
        settings: heist's.
        seed: of noise and controls.
        max_steps: without a touch until here is a failure.
        finish_steps: that finishing may take.
        num_environments, precision: of play.
        cache_dir: folder of all that is kept.
    """

    def __init__(
        self,
        agent: TappedAgent,
        edits: Mapping[str, tuple[str, TapEdit]],
        mazes: Sequence[State],
        *,
        settings: EnvironmentSettings,
        seed: int,
        max_steps: int,
        finish_steps: int,
        num_environments: int,
        precision: Precision,
        cache_dir: str | Path,
    ) -> None:
        self._agent, self._edits, self._mazes = agent, edits, mazes
        self._untrained = agent.untrained(seed).to(next(agent.parameters()).device)
        self.states = [maze.to_bytes() for maze in mazes]
        self._settings, self._seed, self._finish_steps = settings, seed, finish_steps
        self._max_steps, self._num_environments = max_steps, num_environments
        self._precision: Precision = precision
        self._kept = Kept(
            cache_dir,
            {
                "agent": agent.weights_hash, "seed": seed, "steps": [max_steps, finish_steps],
                "arms": {
                    entity: {arm: edit_hashes(trial) for arm, trial in self._trials(entity).items()}
                    for entity in edits
                },
                "random_agent": hash_tensors(self._untrained.state_dict()),
                "states": hashlib.sha256(b"".join(self.states)).hexdigest(), "mode": settings.distribution_mode,
                "environments": num_environments, "precision": precision,
            },
        )  # fmt: skip

    def unedited(self) -> Int[np.ndarray, " N"]:
        """What the unedited agent touches first in each maze: index into `ENTITIES`, -1 for nothing."""
        return np.array(self._kept.numbers("unedited", self._arm, self.states, "unedited")["touched"])

    def ends(self) -> list[int]:
        """Whether the unedited agent finishes each maze."""
        return self._kept.numbers("unedited_ends", self._ends, self.states, self._seed)["finished"]

    def outcomes(
        self, entity: str, counted: Int[np.ndarray, " n"], preferred: Int[np.ndarray, " n"]
    ) -> dict[str, Outcome]:
        """What came of each arm.

        Args:
            entity: that is asked for.
            counted: mazes in which the unedited agent touches another one first.
            preferred: what it touches there.
        """
        asked, everything = ENTITIES.index(entity), np.arange(len(counted))
        some = [self.states[row] for row in counted]
        played: dict[str, tuple[Sequence[Edit], TappedAgent, int]] = {
            "none": ((), self._agent, self._seed + 1),
            "random_agent": ((), self._untrained, self._seed),
            **{arm: (trial, self._agent, self._seed) for arm, trial in self._trials(entity).items()},
        }
        touched = {
            arm: np.array(self._kept.numbers(f"{entity}_{arm}", self._arm, some, f"{entity}, {arm}", *how)["touched"])
            for arm, how in played.items()
        }
        found = {arm: Outcome(first == asked, first == NOTHING, everything) for arm, first in touched.items()}
        bounds = self._kept.numbers(f"{entity}_bounds", self._bounds, counted, entity, preferred)
        keys = np.flatnonzero([(name != "gem") & (entity != "gem") for name in np.array(ENTITIES)[preferred]])
        for arm, rows in (("entity_moved", everything), ("entity_recoloured", keys)):
            first = np.array(bounds[arm], dtype=int)
            if len(rows):
                found[arm] = Outcome(first == preferred[rows], first == NOTHING, rows)
        return found

    def finished(self, entity: str, reached: Int[np.ndarray, " n"]) -> list[int]:
        """Of mazes in which the edit sent the agent to its key: whether it finishes once the edit is lifted then.

        Played in other company than before, a close choice may tip otherwise in bf16: such mazes are left out.
        """
        states = [self.states[row] for row in reached]
        return self._kept.numbers(f"{entity}_finished", self._lifted, states, entity)["finished"]

    def play(self, states: list[bytes], edits: Sequence[Edit], title: str) -> Choices:
        """The agent from some states, with the arms' noise."""
        return self._play(self._agent, states, edits, title, self._seed)

    def _trials(self, entity: str) -> dict[str, list[Edit]]:
        """The edit and its controls."""
        tap, edit = self._edits[entity]
        trials: dict[str, list[Edit]] = {
            "success": [(tap, edit)],
            "random_direction": [(tap, RandomDirection(edit, self._seed).to(next(self._agent.parameters()).device))],
            "random_units": [(tap, on_random_units(edit, self._seed))],
            "wrong_entity": [self._edits[ASKED[(ASKED.index(entity) + 1) % len(ASKED)]]],
        }
        if len(self._agent.taps[tap]) == 3:
            trials["sham_position"] = [(tap, ShamPosition(edit))]
        return trials

    def _arm(
        self,
        states: list[bytes],
        title: str,
        trial: Sequence[Edit] = (),
        agent: TappedAgent | None = None,
        seed: int | None = None,
    ) -> dict[str, list[int]]:
        played = self._play(agent or self._agent, states, trial, title, self._seed if seed is None else seed)
        return {"touched": played.touched.tolist()}

    def _lifted(self, states: list[bytes], entity: str) -> dict[str, list[int]]:
        played, asked = self.play(states, [self._edits[entity]], "to be finished"), ENTITIES.index(entity)
        lifted = [state for state, touched in zip(played.after, played.touched, strict=True) if touched == asked]
        return self._ends(lifted, self._seed + 1)

    def _ends(self, states: list[bytes], seed: int) -> dict[str, list[int]]:
        ended = play_to_end(
            self._agent, states, settings=self._settings, seed=seed, num_environments=self._num_environments,
            max_steps=self._finish_steps, precision=self._precision, progress="to the end",
        )  # fmt: skip
        return {"finished": ended.astype(int).tolist()}

    def _bounds(
        self, counted: Int[np.ndarray, " n"], entity: str, preferred: Int[np.ndarray, " n"]
    ) -> dict[str, list[int]]:
        """The preferred entity really lies where the asked one lay: what does the unedited agent touch?"""
        moved, recoloured = [], []
        for row, index in zip(counted, preferred, strict=True):
            maze, name = self._mazes[row], ENTITIES[index]
            moved.append(swap_entities(maze, entity, name).to_bytes())
            if "gem" not in (entity, name):
                one, other = entity.split("_")[0], name.split("_")[0]
                recoloured.append(recolour(maze, {one: other, other: one}).to_bytes())
        found = {"entity_moved": self._arm(moved, f"{entity}, moved")["touched"], "entity_recoloured": []}
        if recoloured:
            found["entity_recoloured"] = self._arm(recoloured, f"{entity}, recoloured")["touched"]
        return found

    def _play(self, agent: TappedAgent, states: list[bytes], edits: Sequence[Edit], title: str, seed: int) -> Choices:
        return play_choices(
            agent, states, settings=self._settings, edits=edits, seed=seed, num_environments=self._num_environments,
            max_steps=self._max_steps, precision=self._precision, progress=title,
        )  # fmt: skip
