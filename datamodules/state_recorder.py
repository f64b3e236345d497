"""Frames and labels of edited states: one frame of each level, nothing is played."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from datamodules.recorder import LABELS, Rows, label_columns
from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import label_states

StateEdit = Callable[[State, np.random.Generator], State]
"""From the state in which a level begins to another one of heist; what is random about it is drawn from the generator.
For example `environments.heist.scatter_player`."""

_ENVIRONMENTS = 64


class StateRecorder:
    """Records blocks of rows of edited states, as `datamodules.recorder.Recorder` does of play.

    A row is one level of the settings' range, drawn with the block's own seed, as `edit` makes it: `frames`, `levels`
    and the labels of its state. What only recorded play knows (`pursued`, `steps_to_pickup`) is unknown.

    Args:
        settings: heist; levels are drawn from its range.
        edit: what is done to each level.
        seed: fixes levels and edits.

    Raises:
        ValueError: another game than heist, or an edit without a name of its own.
    """

    taps: tuple[str, ...] = ()
    forks = True

    def __init__(self, settings: EnvironmentSettings, edit: StateEdit, *, frames_per_block: int, seed: int = 0) -> None:
        if settings.game != "heist":
            raise ValueError(f"states of heist can be edited and labelled, not those of {settings.game}: choose heist")
        if "<" in getattr(edit, "__qualname__", "<none>"):
            raise ValueError(f"{edit} has no name by which its frames are found again: give a function of a module")
        self.settings, self.edit, self.seed, self._block_frames = settings, edit, seed, frames_per_block
        self._environment: VectorEnvironment | None = None

    @property
    def frames_per_block(self) -> int:
        """Frames of a whole block."""
        return self._block_frames

    def description(self) -> dict[str, Any]:
        """Everything that decides the rows; an edit is known by its name."""
        return {
            "format": 1,
            "edit": f"{self.edit.__module__}.{self.edit.__qualname__}",
            "environment": {k: v for k, v in self.settings.as_dict().items() if k != "num_threads"},
            "labels": LABELS,
            "seed": self.seed,
        }

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        """Make block `index`; arguments as of `Recorder.block`."""
        rng = np.random.default_rng((self.seed, index))
        wanted = self.frames_per_block if frames is None else frames
        parts = []
        for start in range(0, wanted, _ENVIRONMENTS):
            count = min(_ENVIRONMENTS, wanted - start)
            parts.append(self._rows(rng, count))
            if progress is not None:
                progress(count)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def frame_bytes(self) -> int:
        """Bytes of one row, found by making one."""
        return sum(column.nbytes for column in self._rows(np.random.default_rng(0), 1).values())

    def close(self) -> None:
        """Free the environment; the next block makes a new one."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _rows(self, rng: np.random.Generator, count: int) -> Rows:
        if self._environment is None:
            self._environment = VectorEnvironment(self.settings, _ENVIRONMENTS)
        slots = range(count)
        levels = self.settings.start_level + rng.integers(self.settings.num_levels, size=count)
        self._environment.play_levels(levels, slots)
        states = [self.edit(State.from_bytes(state), rng).to_bytes() for state in self._environment.get_states(slots)]
        self._environment.set_states(states, slots)
        _, frames, _ = self._environment.observe()
        rows = {"levels": torch.from_numpy(levels), "frames": torch.from_numpy(frames[:count].copy())}
        unknown = torch.full((count,), -1)
        future = {"labels/pursued": unknown, "labels/steps_to_pickup": unknown.clone()}
        return rows | label_columns(label_states(states)) | future
