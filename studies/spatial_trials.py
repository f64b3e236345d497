"""Playing scenes while units are forced at a place, and the controls of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from environments import EnvironmentSettings, State, render_states
from environments.heist import occupied_cells, place_player
from environments.heist.layout import Cell
from interpretability.forced_maps import Forcing, forced_maps
from interpretability.row_edits import MapEdit, MatchedNoise
from interpretability.unit_maps import unit_maps
from interpretability.visits import Visits, play_visits
from networks import Edit, Precision, SAEBase, TappedAgent
from studies.kept_arms import kept_arm
from studies.spatial_scenes import Scene, walkable

_NUMBERS: Final = 2**26  # of maps that are put in, in memory at once
ARMS: Final[Mapping[str, str]] = {
    "forced": "forced at the place",
    "none": "no edit",
    "sham": "forced at the mirrored place",
    "random_unit": "another unit, at the place",
    "noise": "noise of the same norm",
    "target_there": "target really there, no edit",
}


@dataclass(frozen=True)
class EndMap:
    """Where the agent goes in one scene, a unit forced at each of C cells, from each of several starts.

    Attributes:
        state: of the scene.
        starts: cells of the player.
        cells: where the unit is forced, (x, y).
        ends: mean place at the end, over the starts but the cell itself; NaN for none.
        reached: share of the starts, those next to the cell left out, from which the agent comes to it; NaN for none.
        unedited: the same of the unedited agent.
    """

    state: State
    starts: list[Cell]
    cells: Int[np.ndarray, "C 2"]
    ends: Float[np.ndarray, "C 2"]
    reached: Float[np.ndarray, " C"]
    unedited: Float[np.ndarray, " C"]


@dataclass(frozen=True)
class SpatialTrials:
    """Plays an agent from scenes, many trials in one batch.

    Attributes:
        agent: who plays.
        tap: whose units are forced.
        sae: whose latents they are; None for channels.
        heights: to which a peak of each unit rises.
        rest: what each unit is when it says nothing, see `resting_values`.
        forcing, whole_cell: see `forced_maps`.
        settings, seed, num_environments, max_steps, precision: as for `play_visits`.
        cache_dir: folder in which it is kept what was reached.
    """

    agent: TappedAgent
    tap: str
    sae: SAEBase | None
    heights: Float[Tensor, " U"]
    rest: Float[Tensor, " U"]
    forcing: Forcing
    whole_cell: bool
    settings: EnvironmentSettings
    seed: int
    num_environments: int
    max_steps: int
    precision: Precision
    cache_dir: str

    def at(self, strengths: float | Float[Tensor, " U"]) -> Self:
        """The same with peaks so many times as far above rest."""
        return replace(self, heights=self.rest + strengths * (self.heights - self.rest))

    def scan(self, scenes: Sequence[Scene], title: str) -> Bool[np.ndarray, "U S"]:
        """For every unit and scene, whether the agent comes to the place while that unit is forced there."""
        units, count = len(self.heights), len(scenes)
        _, height, width = self.agent.taps[self.tap]
        at_once = max(1, _NUMBERS // (count * height * width))
        parts = []
        for begin in range(0, units, at_once):
            chosen = torch.arange(begin, min(begin + at_once, units)).repeat_interleave(count)[:, None]
            many = list(scenes) * (len(chosen) // count)
            edit = self._edit(many, chosen, sham=False)
            parts.append(self._reach(many, [(self.tap, edit)], f"{title}, units from {begin}").reshape(-1, count))
        return np.concatenate(parts)

    def unedited(self, scenes: Sequence[Scene]) -> Bool[np.ndarray, " S"]:
        """Whether the agent comes to the place anyway."""
        return self._reach(scenes, [], "no edit")

    def target_there(self, scenes: Sequence[Scene]) -> Bool[np.ndarray, " S"]:
        """Whether the unedited agent comes to the place if the target really lies there."""
        return self._reach([scene._replace(state=scene.target_there()) for scene in scenes], [], "target there")

    def arms(self, scenes: Sequence[Scene], units: Sequence[int]) -> dict[str, Bool[np.ndarray, " S"]]:
        """Whether the agent comes to the place with some units forced together there, and with each control.

        Other units are drawn for each scene among those that are ever active; where there are too few, that arm is
        left out.
        """
        count = len(scenes)
        own = torch.tensor([list(units)] * count)
        forced = self._edit(scenes, own, sham=False)
        trials = {"forced": forced, "sham": self._edit(scenes, own, sham=True)}
        others = [unit for unit in torch.nonzero(self.heights > self.rest).flatten().tolist() if unit not in units]
        if len(others) >= len(units):
            rng = np.random.default_rng([self.seed, *units])
            drawn = np.stack([rng.permutation(others)[: len(units)] for _ in scenes])
            trials["random_unit"] = self._edit(scenes, torch.from_numpy(drawn), sham=False)
        edits: dict[str, Edit] = {arm: (self.tap, edit) for arm, edit in trials.items()}
        device = next(self.agent.parameters()).device
        noise = MatchedNoise(forced, self.agent.taps[self.tap], seed=self.seed).to(device)
        edits["noise"] = (self.tap, noise)
        return {arm: self._reach(scenes, [edit], f"units {list(units)}, {arm}") for arm, edit in edits.items()}

    def visits(self, scenes: Sequence[Scene], units: Sequence[int]) -> Visits:
        """Where the agent goes with units forced, to the last step; without any it is not edited."""
        if not units:
            return self._play(scenes, [], None, "no edit")
        edit = self._edit(scenes, torch.tensor([list(units)] * len(scenes)), sham=False)
        return self._play(scenes, [(self.tap, edit)], None, "to the last step")

    def end_map(self, scene: Scene, units: Sequence[int], starts: int) -> EndMap:
        """Units forced at each free cell of one scene, from several starts."""
        rng = np.random.default_rng([self.seed, scene.state.level_seed])
        free = [cell for cell in walkable(scene.state) if cell not in _things(scene.state)]
        begins = [free[row] for row in rng.permutation(len(free))[:starts]]
        states = [place_player(scene.state, cell) for cell in begins]
        cells, firsts = np.array(free), np.array(begins)
        far = np.abs(cells[:, None] - firsts[None]).max(2) > 1
        rows, columns = np.nonzero((cells[:, None] != firsts[None]).any(2))  # nothing else fits where the player is
        pairs = zip(rows, columns, strict=True)
        many = [scene._replace(state=states[column], place=free[row]) for row, column in pairs]

        def shares(visits: Visits) -> np.ndarray:
            hits = np.zeros(far.shape, dtype=bool)
            hits[rows, columns] = visits.reached(cells[rows])
            return np.where(far.any(1), (hits & far).sum(1) / np.maximum(far.sum(1), 1), np.nan)

        forced = self.visits(many, units)
        once = self.visits([scene._replace(state=state) for state in states], [])
        clean = Visits([once.paths[row] for row in columns], [once.actions[row] for row in columns], once.gem[columns])
        ends = np.full((*far.shape, 2), np.nan)
        ends[rows, columns] = forced.ends
        mean = np.ma.masked_invalid(ends).mean(1).filled(np.nan)
        return EndMap(scene.state, begins, cells, mean, shares(forced), shares(clean))

    def _edit(self, scenes: Sequence[Scene], units: Int64[Tensor, "T G"], sham: bool) -> MapEdit:
        """Units forced at each scene's place. The sham of a patch is the scene's own map: nothing has moved in it."""
        cells: list[Cell] = [scene.sham if sham else scene.place for scene in scenes]
        _, height, width = self.agent.taps[self.tap]
        sources = None
        if self.forcing == "patch":
            from_states = [(scene.state if sham else scene.target_there()).to_bytes() for scene in scenes]
            different = {state: row for row, state in enumerate(dict.fromkeys(from_states))}
            frames = torch.from_numpy(render_states(list(different), self.settings))
            maps = unit_maps(self.agent, self.tap, frames, sae=self.sae, precision=self.precision)
            sources = maps[torch.tensor([different[state] for state in from_states])[:, None], units]
        edit = forced_maps(
            self.forcing, units, cells, scenes[0].state.grid.shape[0], (height, width), heights=self.heights,
            rest=self.rest, sources=sources, whole_cell=self.whole_cell, sae=self.sae,
        )  # fmt: skip
        return edit.to(next(self.agent.parameters()).device)

    def _reach(self, scenes: Sequence[Scene], edits: Sequence[Edit], title: str) -> Bool[np.ndarray, " S"]:
        """Whether each comes to its place; what was played before is not played again."""
        cells = np.array([scene.place for scene in scenes])
        known = {
            "cells": cells.tolist(), "seed": self.seed, "max_steps": self.max_steps,
            "environments": self.num_environments, "precision": self.precision, "mode": self.settings.distribution_mode,
        }  # fmt: skip
        kept = kept_arm(
            self.cache_dir, self.agent, edits, self.sae, [scene.state.to_bytes() for scene in scenes], known,
            lambda: {"reached": self._play(scenes, edits, cells, title).reached(cells).astype(int).tolist()},
        )  # fmt: skip
        return np.array(kept["reached"], dtype=bool)

    def _play(
        self, scenes: Sequence[Scene], edits: Sequence[Edit], until: Int[np.ndarray, "S 2"] | None, title: str
    ) -> Visits:
        return play_visits(
            self.agent, [scene.state.to_bytes() for scene in scenes], settings=self.settings, until=until,
            edits=edits, trials=np.arange(len(scenes)), seed=self.seed, num_environments=self.num_environments,
            max_steps=self.max_steps, precision=self.precision, progress=title,
        )  # fmt: skip


def _things(state: State) -> set[Cell]:
    """Cells that hold anything but the player."""
    return {cell for cell, names in occupied_cells(state).items() if names != ["player"]}
