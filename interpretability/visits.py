"""Where does an agent go? Playing heist's saved states and following the player."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from environments import EnvironmentSettings, State
from environments.heist import find_entity
from interpretability.saved_play import play_saved
from networks.precision import DEFAULT_PRECISION, Precision
from networks.taps import Edit, TappedAgent

NEAR = 1.0


@dataclass(frozen=True)
class Visits:
    """The ways of N episodes.

    Attributes:
        paths: where the player was before each action and after the last, (x, y) in cells, y upwards; where the level
            ended with the gem, the last place is the gem's.
        actions: taken on the way.
        gem: whether it ended there.
    """

    paths: list[Float[np.ndarray, "T 2"]]
    actions: list[list[int]]
    gem: Bool[np.ndarray, " N"]

    @property
    def ends(self) -> Float[np.ndarray, "N 2"]:
        """Where the player was at last."""
        return np.stack([path[-1] for path in self.paths])

    def reached(self, cells: Int[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
        """Whether the player came within one cell, along both axes, of the centre of each episode's cell.

        In heist's mazes, whose walls fill cells, no wall lies between.
        """
        pairs = zip(self.paths, cells, strict=True)
        return np.array([bool((_distance(path, cell) <= NEAR).any()) for path, cell in pairs], dtype=bool)


def play_visits(
    agent: TappedAgent,
    states: Sequence[bytes],
    *,
    settings: EnvironmentSettings,
    until: Int[np.ndarray, "N 2"] | None = None,
    edits: Sequence[Edit] = (),
    trials: Sequence[int] | Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
    num_environments: int = 64,
    max_steps: int = 50,
    precision: Precision = DEFAULT_PRECISION,
    progress: str | None = None,
) -> Visits:
    """Play on from saved states; keys are taken on the way, the gem ends an episode.

    Args:
        agent, states, settings, edits, trials, seed, num_environments, precision, progress: as for `play_saved`.
        until: cells (x, y); an episode stops within one cell of its own. None plays on.
        max_steps: stop here.

    Raises:
        ValueError: as for `play_saved`, or another number of cells than states.
    """
    if until is not None and len(until) != len(states):
        raise ValueError(f"{len(until)} cells for {len(states)} states: give one a state")
    first = {state: _player(state) for state in set(states)}
    paths = [[first[state]] for state in states]

    def look(rows: Int[np.ndarray, " n"], now: list[bytes]) -> Bool[np.ndarray, " n"]:
        for row, state in zip(rows, now, strict=True):
            paths[row].append(_player(state))
        if until is None:
            return np.zeros(len(rows), dtype=bool)
        return _distance(np.array([paths[row][-1] for row in rows]).reshape(-1, 2), until[rows]) <= NEAR

    played = play_saved(
        agent, states, settings=settings, edits=edits, trials=trials, seed=seed, num_environments=num_environments,
        max_steps=max_steps, precision=precision, look=look, progress=progress,
    )  # fmt: skip
    for row in np.flatnonzero(played.gem):
        state = State.from_bytes(states[row])
        place = state.entities[find_entity(state, "gem")]
        paths[row].append((float(place["x"]), float(place["y"])))
    return Visits([np.array(path) for path in paths], played.actions, played.gem)


def _player(state: bytes) -> tuple[float, float]:
    player = State.from_bytes(state).entities[0]
    return float(player["x"]), float(player["y"])


def _distance(places: Float[np.ndarray, "T 2"], cells: Int[np.ndarray, "*T 2"]) -> Float[np.ndarray, " T"]:
    """Along the longer axis, from the cells' centres."""
    return np.abs(places - (np.asarray(cells) + 0.5)).max(-1)
