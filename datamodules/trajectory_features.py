"""What a frozen agent's tap yields for every recorded frame, kept with the trajectories: computed once, read often."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, UInt8
from torch import Tensor

from datamodules.cache import ActivationCache
from datamodules.frame_patches import PackedFrames
from datamodules.recorder import Rows
from environments import FRAME_SHAPE
from networks import DEFAULT_PRECISION, Precision, TappedAgent, autocast, hash_tensors

_AT_ONCE = 256  # frames of one pass


@dataclasses.dataclass(frozen=True)
class FeatureTap:
    """Whose activations are kept with the trajectories, and where in the network.

    Attributes:
        agent: path of the frozen agent's weights.
        tap: of that agent, for example `fc1`.
    """

    agent: str
    tap: str


class FeatureRecorder:
    """Makes shards of features for the shards of a trajectory cache: `features` [R ...] in float16, in the same order.

    Each shard also holds the hash of the frames it belongs to (`frames_hash`), so that features never go with frames
    that were recorded anew and came out differently (on another machine, for example).

    Args:
        trajectories: whose frames; it has to be built before a block is asked for.
        agent: frozen; moved to `device`.
        tap: of that agent.
        precision: in which it runs.

    Raises:
        ValueError: an unknown tap.
    """

    def __init__(
        self,
        trajectories: ActivationCache,
        agent: TappedAgent,
        tap: str,
        precision: Precision = DEFAULT_PRECISION,
        device: torch.device | str = "cpu",
    ) -> None:
        agent.check_taps([tap])
        self.taps: tuple[str, ...] = (tap,)
        self._trajectories, self._agent = trajectories, agent.to(device)
        self._precision, self._device = precision, torch.device(device)
        self._opened: list[Rows] | None = None

    @property
    def forks(self) -> bool:
        """Whether blocks can be made in forked processes: not on a GPU."""
        return self._device.type == "cpu"

    @property
    def frames_per_block(self) -> int:
        """That of the trajectories: one shard of features for each of theirs."""
        return self._trajectories.shard_frames[0]

    def description(self) -> dict[str, Any]:
        """Everything that decides the features, as primitives."""
        return {
            "format": 1,
            "trajectories": self._trajectories.folder.name,
            "agent": hash_tensors(self._agent.state_dict()),
            "architecture": {"name": self._agent.architecture, **self._agent.config()},
            "tap": self.taps[0],
            "precision": self._precision,
        }

    def block(self, index: int, frames: int | None = None, progress: Callable[[int], object] | None = None) -> Rows:
        """Features of trajectory shard `index`; `frames` is about how many that has, for the progress bar.

        Raises:
            ValueError: the tap yields numbers beyond the range of float16.
        """
        if self._opened is None:
            self._opened = self._trajectories.open()
        shard = self._opened[index]
        packed, left = PackedFrames.from_rows(shard), len(shard["actions"]) if frames is None else frames
        features = torch.empty(len(shard["actions"]), *self._agent.taps[self.taps[0]], dtype=torch.float16)
        row = 0
        for episode, steps in enumerate(shard["episodes/steps"].tolist()):
            seen = np.empty((steps, *FRAME_SHAPE), dtype=np.uint8)
            packed.read(episode, 0, seen)
            features[row : row + steps] = self._run(seen)
            row += steps
            if progress is not None:
                progress(min(steps, left))
                left -= min(steps, left)
        if progress is not None:
            progress(left)
        if not torch.isfinite(features).all():
            raise ValueError(f"tap {self.taps[0]} yields numbers beyond float16's range: choose another tap")
        return {"features": features, "frames_hash": frames_hash(shard)}

    def _run(self, frames: UInt8[np.ndarray, "L 64 64 3"]) -> Float16[Tensor, "L *F"]:
        new = np.ones(len(frames), dtype=bool)  # what equals the frame before (a stuck player's) is not run again
        new[1:] = (frames[1:] != frames[:-1]).any((1, 2, 3))
        parts = []
        for some in torch.from_numpy(frames[new]).split(_AT_ONCE):
            with torch.no_grad(), autocast(self._precision, self._device):
                output = self._agent(some.to(self._device), record=self.taps, outputs=False)
            parts.append(output.activations[self.taps[0]].half().cpu())
        return torch.cat(parts)[torch.from_numpy(np.cumsum(new) - 1)]

    def frame_bytes(self) -> int:
        """Bytes of one frame's features."""
        return 2 * int(torch.Size(self._agent.taps[self.taps[0]]).numel())

    def close(self) -> None:
        """Let go of the trajectories."""
        self._opened = None


def frames_hash(shard: Rows) -> UInt8[Tensor, "32"]:
    """SHA-256 of a trajectory shard's frames."""
    digest = hashlib.sha256()
    for name in ("episodes/steps", "frames/first", "frames/patches", "frames/changed"):
        digest.update(shard[name].numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def open_features(features: ActivationCache, trajectories: list[Rows]) -> list[Tensor]:
    """Features of every shard [R ...], mapped into memory.

    Raises:
        ValueError: a shard is damaged, or belongs to other frames.
    """
    opened = features.open()
    for shard, frames in zip(opened, trajectories, strict=True):
        if not torch.equal(shard["frames_hash"], frames_hash(frames)):
            raise ValueError(
                f"the features in {features.folder} belong to trajectories that were since recorded anew: "
                "delete that folder and run the same command again"
            )
    return [shard["features"] for shard in opened]
