"""What a step of fitting probes is fed with: one tap with all its frames."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import BFloat16, Int, Shaped
from torch import Tensor
from torch.nn import functional

Split = Literal["training", "validation", "test"]

PIXELS, PIXELS_PCA = "pixels", "pixels_pca"
_AT_ONCE = 4_096  # frames laid out together


class Subject(NamedTuple):
    """Something whose activations are probed.

    Attributes:
        network: `agent`, `random_agent` (its architecture with fresh weights), `pixels`, or `pixels_pca`: pixels to be
            read by their principal components alone.
        tap: of the network; the network's own name for the frame itself.
        shape: of the tap for one input.
        reduced: of the activations as they are handed out.
    """

    network: str
    tap: str
    shape: tuple[int, ...]
    reduced: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Examples:
    """N frames of one split, as one tap shows them.

    Attributes:
        activations: mean-pooled to the subject's reduced shape, in bfloat16 [N C h w] or [N C].
        labels: by name: `datamodules.recorder.LABELS`, and `action`, the agent's likeliest.
        levels: level seed of each frame.
    """

    activations: Shaped[Tensor, "N C *hw"]
    labels: dict[str, Shaped[np.ndarray, "N ..."]]
    levels: Int[Tensor, " N"]


class ProbeBatch(NamedTuple):
    """One subject with all its frames: a training step fits everything that is to be read from one tap.

    Attributes:
        subject: whose activations.
        examples: by split: training and validation in a training step, test in a test step.
    """

    subject: Subject
    examples: dict[str, Examples]


def pixels_on_grid(pixels: Subject, height: int, width: int) -> Subject:
    """The pixels as a map of so many positions, its channels all (mean-pooled) pixels that lie in a position.

    So that what is read per position of a tap is compared with what the pixels of the same position tell.
    """
    colours, *sides = pixels.reduced
    times = max(1, min(sides[0] // height, sides[1] // width))
    shape = (colours * times**2, height, width)
    return Subject(PIXELS, grid_name(height, width), shape, shape)


def grid_name(height: int, width: int) -> str:
    """Tap of the pixels laid out on a grid."""
    return f"{PIXELS}_{height}x{width}"


def _laid_on_grid(acts: Shaped[Tensor, "N C H W"], grid: Subject) -> BFloat16[Tensor, "N c h w"]:
    count, height, width = grid.reduced
    times = round((count / acts.shape[1]) ** 0.5)
    parts = [
        functional.pixel_unshuffle(
            functional.adaptive_avg_pool2d(part.float(), (height * times, width * times)), times
        ).bfloat16()
        for part in acts.split(_AT_ONCE)
    ]
    return torch.cat(parts)


def seen_as(batch: ProbeBatch, subject: Subject) -> ProbeBatch:
    """A batch as it is, or that of the pixels as `pixels_on_grid` says.

    The pixels are averaged to a whole number of them in each position, then gathered there.
    """
    if subject == batch.subject:
        return batch
    laid = {
        split: dataclasses.replace(examples, activations=_laid_on_grid(examples.activations, subject))
        for split, examples in batch.examples.items()
    }
    return ProbeBatch(subject, laid)


class ProbeSource(Protocol):
    """Where a loader takes subjects from.

    Attributes:
        subjects: in order.
        done: how many of them training has been given.
    """

    done: int

    @property
    def subjects(self) -> list[Subject]: ...

    def examples(self, network: str, splits: tuple[Split, ...]) -> dict[str, dict[str, Examples]]:
        """Examples of all subjects of one network: by tap, then by split."""


class SubjectLoader:
    """Yields every subject once, computing each network's activations when its first subject is asked for.

    In training it begins at the first subject that the data module does not know to be done, so that a resumed run
    goes on there.
    """

    def __init__(self, data: ProbeSource, splits: tuple[Split, ...]) -> None:
        self._data, self._splits = data, splits

    def __len__(self) -> int:
        return len(self._data.subjects)

    def __iter__(self) -> Iterator[ProbeBatch]:
        training = "training" in self._splits
        first = self._data.done if training else 0
        examples: dict[str, dict[str, Examples]] = {}
        network = ""
        for index, subject in enumerate(self._data.subjects[first:], first):
            if subject.network != network:
                examples.clear()
                network = subject.network
                examples = self._data.examples(network, self._splits)
            if training:
                self._data.done = (index + 1) % len(self)
            yield ProbeBatch(subject, examples.pop(subject.tap))

    def state_dict(self) -> dict[str, int]:
        """Empty: the data module keeps the position; having it tells Lightning that this loader goes on there."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to load: see `state_dict`."""
