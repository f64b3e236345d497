"""Playing a frozen agent and keeping what its taps yield, in the same forward pass as it acts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from datamodules.outcomes import outcomes
from datamodules.recorded_game import RecordedGame, Watcher
from environments import NUM_ACTIONS, EnvironmentSettings, VectorEnvironment
from environments.heist import Labels, label_states
from networks import DEFAULT_PRECISION, Precision, TappedNetwork, hash_tensors, sample_actions
from networks.origin import warn_of_another_game

Rows = dict[str, Tensor]
"""Columns of equal length by name: `activations/TAP`, `beside/TAP`, `inside/TAP`, `labels/NAME`, `frames`, `levels`."""

LABELS = [*(field.name for field in dataclasses.fields(Labels)), "pursued", "steps_to_pickup"]
"""Names of label columns: the fields of `environments.heist.Labels`, and what `datamodules.outcomes` adds."""

MAX_POSITIONS = 64


@dataclasses.dataclass(frozen=True)
class PlaySettings:
    """How the agent plays while it is recorded. One block of rows is `environments` x `steps` frames.

    Attributes:
        environments: levels played side by side; each block begins every one of them on a new level.
        steps: recorded steps of each in a block. It should exceed the length of usual episodes, so that late phases
            are met; it also ends the play of stuck ones, which would otherwise fill the data with one picture.
        every: of the steps played, every so manyth is recorded: frames of more levels and places in as many rows.
        temperature: divides the logits; 0 plays greedily.
        epsilon: share of actions drawn uniformly.
        random_start: each environment first takes between 0 and this many random, unrecorded steps, so that
            episodes do not march in step and begin in more places than the levels' own.
    """

    environments: int = 64
    steps: int = 128
    every: int = 1
    temperature: float = 1.0
    epsilon: float = 0.0
    random_start: int = 32

    def __post_init__(self) -> None:
        if min(self.environments, self.steps, self.every) < 1 or self.random_start < 0:
            raise ValueError(
                f"play.environments {self.environments}, play.steps {self.steps} and play.every {self.every} must be "
                f"at least 1, play.random_start {self.random_start} at least 0"
            )
        if self.temperature < 0 or not 0 <= self.epsilon <= 1:
            raise ValueError(
                f"play.temperature {self.temperature} must be at least 0 and play.epsilon {self.epsilon} in 0 to 1"
            )


class Recorder:
    """Records blocks of rows, each from its own seeds: block i is the same whichever blocks were made before it.

    Activations are stored in the very type that the agent yields under `precision`. Maps are kept with channels last
    in memory [R H W C], as the agent computes them. With `positions_per_frame` a row is one position of a frame [R C]:
    that many different random positions of each frame, fewer where the smallest tap has fewer, drawn for each tap.

    Args:
        agent: plays and is recorded; moved to `device`. One that remembers sees each block's episodes from their
            beginnings, random steps included.
        settings: what is played; levels are drawn from its range.
        taps: what is recorded; none records frames and labels only.
        positions_per_frame: None keeps whole maps.
        frames: keep the frames (whole maps only).
        labels: keep `environments.heist.label_states` of every frame, and its `outcomes`.
        inside: keep which positions of each map show the maze (heist in easy and hard mode only).
        beside: another network of the agent's kind that sees the same play; what the same taps of it yield are columns
            `beside/TAP` (whole maps only).
        seed: fixes levels, action noise and the order of rows.

    Raises:
        ValueError: an unknown tap, or columns that the game or the kind of rows cannot have.
    """

    def __init__(
        self,
        agent: TappedNetwork,
        settings: EnvironmentSettings,
        taps: Sequence[str],
        *,
        positions_per_frame: int | None = None,
        frames: bool = False,
        labels: bool = False,
        inside: bool = False,
        beside: TappedNetwork | None = None,
        precision: Precision = DEFAULT_PRECISION,
        play: PlaySettings,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        agent.check_taps(taps)
        agent.check_actions(NUM_ACTIONS)
        warn_of_another_game(agent.metadata, settings.game, settings.distribution_mode)
        if labels and settings.game != "heist":
            raise ValueError(f"labels exist for heist, not for {settings.game}: set labels to false")
        if frames and positions_per_frame is not None:
            raise ValueError(
                "frames go with whole maps: set positions_per_frame to null, or frames to false "
                "(validation batches carry frames in any case)"
            )
        if beside is not None and positions_per_frame is not None:
            raise ValueError("beside goes with whole maps: set positions_per_frame to null")
        self.beside = None if beside is None else beside.to(device)
        self.agent, self.settings, self.taps, self.play = agent.to(device), settings, tuple(taps), play
        self.frames, self.labels, self.precision = frames, labels, precision
        self.inside = inside and shows_whole_maze(settings)
        self.seed, self.device = seed, torch.device(device)
        self.positions_per_frame = positions_per_frame
        maps = [shape[1] * shape[2] if len(shape) == 3 else 1 for shape in (agent.taps[tap] for tap in self.taps)]
        self.rows_per_frame = 1 if positions_per_frame is None else min(positions_per_frame, *maps)
        self._environment: VectorEnvironment | None = None

    def description(self) -> dict[str, Any]:
        """Everything that decides the rows, as primitives: two recorders that agree here record the same."""
        beside = {} if self.beside is None else {"beside": hash_tensors(self.beside.state_dict())}
        return beside | {
            "format": 1,
            "agent": hash_tensors(self.agent.state_dict()),
            "architecture": {"name": self.agent.architecture, **self.agent.config()},
            "environment": {k: v for k, v in self.settings.as_dict().items() if k != "num_threads"},
            "taps": list(self.taps),
            "rows": [self.positions_per_frame, self.frames, self.labels and LABELS, self.inside],
            "precision": self.precision,
            "play": dataclasses.asdict(self.play),
            "seed": self.seed,
        }

    @property
    def forks(self) -> bool:
        """Whether blocks can be made in forked processes: not on a GPU."""
        return self.device.type == "cpu"

    @property
    def frames_per_block(self) -> int:
        """Frames of a whole block."""
        return self.play.environments * self.play.steps

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        """Play block `index` and return its rows in random order.

        Args:
            index: of the block.
            frames: how many frames, a whole block by default; a shorter one plays fewer steps.
            progress: called with the number of new frames after each step.
        """
        play, count = self.play, self.play.environments
        wanted = self.frames_per_block if frames is None else frames
        steps = -(-wanted // count)
        rng = np.random.default_rng((self.seed, index))
        noise = torch.Generator().manual_seed(int(rng.integers(2**63)))
        order = torch.randperm(steps * count * self.rows_per_frame, generator=noise).split(count * self.rows_per_frame)
        game = self._game(rng)
        game.begin(play.random_start)
        rows: Rows = {}
        course: list[tuple[np.ndarray, ...]] = []
        last = (steps - 1) * play.every
        for moment in range(last + 1):
            labels = label_states(game.states()) if self.labels else None
            if labels is not None:
                course.append((labels.held, labels.cells, game.began, game.solved))
            output = game.look()
            step, between = divmod(moment, play.every)
            if not between:
                columns = self._columns(output.activations, game, labels, noise)
                if not rows:
                    rows = {
                        name: torch.empty((steps * len(column), *column.shape[1:]), dtype=column.dtype)
                        for name, column in columns.items()
                    }
                for name, column in columns.items():
                    rows[name][order[step]] = column
                if progress is not None:
                    progress(min(count, wanted - step * count))
            if moment < last:
                assert output.logits is not None
                game.act(self._choose(output.logits.cpu(), noise))
        if self.labels:
            rows |= self._outcomes(torch.stack(order), *map(np.stack, zip(*course, strict=True)))
        return {name: column[: wanted * self.rows_per_frame] for name, column in rows.items()}

    def _outcomes(self, order: Int[Tensor, "T R"], *course: Shaped[np.ndarray, "steps N ..."]) -> Rows:
        """Labels of every row that only the rest of the block knows."""
        columns = {}
        for name, values in zip(("pursued", "steps_to_pickup"), outcomes(*course), strict=True):
            column = columns[f"labels/{name}"] = torch.empty(order.numel(), dtype=torch.int64)
            recorded = torch.from_numpy(values[:: self.play.every])
            column[order] = recorded.repeat_interleave(self.rows_per_frame, 1)
        return columns

    def _game(self, rng: np.random.Generator) -> RecordedGame:
        if self._environment is None:
            self._environment = VectorEnvironment(self.settings, self.play.environments)
        shapes = {self.agent.taps[tap][1:] for tap in self.taps if len(self.agent.taps[tap]) == 3}
        networks = [self.agent] if self.beside is None else [self.agent, self.beside]
        watchers = [Watcher(each, self.play.environments, self.taps, self.precision, self.device) for each in networks]
        return RecordedGame(self._environment, rng, shapes if self.inside else set(), watchers)

    def _choose(self, logits: Float[Tensor, "N A"], noise: torch.Generator) -> Int[np.ndarray, " N"]:
        uniforms = torch.rand(logits.shape, generator=noise)
        if self.play.temperature == 0:
            actions = sample_actions(logits, None)
        else:
            actions = sample_actions(logits / self.play.temperature, uniforms)
        if self.play.epsilon > 0:
            random = torch.randint(logits.shape[1], actions.shape, generator=noise)
            actions = torch.where(torch.rand(actions.shape, generator=noise) < self.play.epsilon, random, actions)
        return actions.numpy()

    def _columns(
        self, activations: dict[str, Tensor], game: RecordedGame, labels: Labels | None, noise: torch.Generator
    ) -> Rows:
        """One step's rows: those of frame n before those of frame n + 1."""
        columns: Rows = {}
        for tap in self.taps:
            maps = _channels_last(activations[tap].cpu())
            inside = torch.from_numpy(game.inside[maps.shape[1:3]]) if self.inside and maps.ndim == 4 else None
            if self.positions_per_frame is not None:
                maps = maps.flatten(1, -2) if maps.ndim > 2 else maps.unsqueeze(1)
                chosen = self._positions(maps.shape[0], maps.shape[1], noise)
                maps = _pick(maps, chosen)
                inside = None if inside is None else _pick(inside.flatten(1), chosen)
            columns[f"activations/{tap}"] = maps
            if inside is not None:
                columns[f"inside/{tap}"] = inside
        if self.beside is not None:
            seen = game.look_beside().activations
            columns |= {f"beside/{tap}": _channels_last(seen[tap].cpu()) for tap in self.taps}
        per_frame: Rows = {"levels": torch.from_numpy(game.levels.copy())}
        if self.frames:
            per_frame["frames"] = torch.from_numpy(game.frames)
        if labels is not None:
            per_frame |= label_columns(labels)
        return columns | {name: c.repeat_interleave(self.rows_per_frame, 0) for name, c in per_frame.items()}

    def _positions(self, frames: int, positions: int, noise: torch.Generator) -> Int[Tensor, "N P"] | None:
        if positions == self.rows_per_frame:
            return None
        return torch.rand(frames, positions, generator=noise).topk(self.rows_per_frame).indices

    def frame_bytes(self) -> int:
        """Bytes of one frame's rows, found by recording one step."""
        noise = torch.Generator().manual_seed(0)
        game = self._game(np.random.default_rng(0))
        game.begin(0)
        labels = label_states(game.states()) if self.labels else None
        columns = self._columns(game.look().activations, game, labels, noise)
        outcome_bytes = 2 * 8 * self.rows_per_frame if self.labels else 0
        return sum(column.nbytes for column in columns.values()) // self.play.environments + outcome_bytes

    def close(self) -> None:
        """Free the environment; the next block makes a new one."""
        if self._environment is not None:
            self._environment.close()
            self._environment = None


def label_columns(labels: Labels) -> Rows:
    """Labels as columns `labels/NAME`."""
    fields = [field.name for field in dataclasses.fields(Labels)]
    return {f"labels/{name}": torch.from_numpy(np.ascontiguousarray(getattr(labels, name))) for name in fields}


def shows_whole_maze(settings: EnvironmentSettings) -> bool:
    """Whether frames show heist's whole world, so that a position's place in the maze is known."""
    return settings.game == "heist" and settings.distribution_mode in ("easy", "hard")


def _channels_last(acts: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "N ... C"]:
    if acts.ndim == 4:
        return acts.permute(0, 2, 3, 1)
    return acts.flatten(1) if acts.ndim > 1 else acts.unsqueeze(1)


def _pick(maps: Shaped[Tensor, "N HW ..."], chosen: Int[Tensor, "N P"] | None) -> Shaped[Tensor, "NP ..."]:
    if chosen is None:
        return maps.flatten(0, 1)
    return maps[torch.arange(len(maps)).unsqueeze(1), chosen].flatten(0, 1)
