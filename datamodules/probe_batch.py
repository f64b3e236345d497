"""What a step of fitting probes is fed with: one tap with all its frames."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, Shaped
from torch import Tensor

Split = Literal["training", "validation", "test"]

PIXELS = "pixels"


class Subject(NamedTuple):
    """Something whose activations are probed.

    Attributes:
        network: `agent`, `random_agent` (its architecture with fresh weights) or `pixels`.
        tap: of the network; `pixels` for the frame itself.
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
