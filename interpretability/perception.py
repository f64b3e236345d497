"""Does an edit change what the agent sees or what it wants? Probes fitted without the edit, read with it.

One probe asks of the cells of maps what lies there: a key of which colour, the gem, or nothing. The other asks of a
late flat tap which entity the agent will touch next. An edit of the goal alone leaves the first as it was and turns the
second to the asked entity; an edit that repaints the maze turns both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from environments.heist import ENTITIES, Labels, positions
from networks.taps import Edit, TappedAgent

SEEN = ("blue_key", "green_key", "red_key", "gem")
"""What may lie in a cell; the class after these is a cell, of floor or wall, in which nothing lies."""
_EMPTY = len(SEEN)
_BATCH = 256
_NEVER = -1e4  # score of a class that was not there to be fitted
_KERNEL = 3  # side of the neighbourhoods of cells
_STRENGTH = 0.1  # of readers: 1 over the penalty on squared weights of standardised features


@dataclass(frozen=True)
class Views:
    """Frames of play in mazes of choices, with what lies where and what the agent touched next.

    Attributes:
        frames: uint8 [N 64 64 3].
        labels: of their states.
        maze: which maze each is of.
        pursued: index into `SEEN` of what the agent touched next, -1 where that was nothing.
    """

    frames: UInt8[np.ndarray, "N 64 64 3"]
    labels: Labels
    maze: Int[np.ndarray, " N"]
    pursued: Int[np.ndarray, " N"]


class Ridge:
    """One-hot least squares with a bias: scores of classes, linear in features.

    Args:
        features, classes: to fit.
        count: of classes.
        penalty: on the squared weights of features of variance 1, in units of the number of rows.
    """

    def __init__(
        self, features: Float[Tensor, "N D"], classes: Int[Tensor, " N"], count: int, penalty: float = 1e-3
    ) -> None:
        wide = features.double()
        self._mean, self._std = wide.mean(0), wide.std(0).clamp(min=1e-6)
        ready, wanted = self._ready(features), torch.nn.functional.one_hot(classes, count).double()
        self._bias = wanted.mean(0)
        gram = ready.T @ ready + penalty * len(ready) * torch.eye(ready.shape[1], dtype=torch.float64)
        self._weight = torch.linalg.solve(gram, ready.T @ (wanted - self._bias))

    def __call__(self, features: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        """The likeliest class of each row."""
        return (self._ready(features) @ self._weight + self._bias).argmax(1)

    def linear(self) -> tuple[Float[Tensor, "D K"], Float[Tensor, " K"]]:
        """Weight and bias of the scores, for features as they are."""
        weight = self._weight / self._std[:, None]
        return weight, self._bias - self._mean @ weight

    def _ready(self, features: Tensor) -> Tensor:
        return (features.double() - self._mean) / self._std


class CellReader(nn.Module):
    """Reads what lies at each position of a map from its neighbourhood: scores [B K H W], one convolution of [B C H W].

    Multinomial logistic regression on standardised neighbourhoods of k x k positions; with the position alone, colours
    are hardly told (of `conv3a` of the shipped agents about half as well).

    Args:
        around: neighbourhoods to fit on (see `neighbourhoods`).
        classes: what lies there, from 0 to `count` - 1; one that never occurs is never read.
        count: K.
        kernel: k.

    Raises:
        ValueError: the same lies everywhere.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        around: Float[Tensor, "M D"],
        classes: Int[np.ndarray, " M"],
        count: int = _EMPTY + 1,
        kernel: int = _KERNEL,
    ) -> None:
        super().__init__()
        mean, std = around.mean(0), around.std(0).clamp(min=1e-6)
        fitted = LogisticRegression(C=_STRENGTH, max_iter=500).fit(((around - mean) / std).numpy(), classes)
        known = fitted.classes_ if len(fitted.classes_) > 2 else fitted.classes_[1:]  # of two, the first has scores 0
        weight, bias = torch.zeros(count, around.shape[1]), torch.full((count,), _NEVER)
        bias[fitted.classes_] = 0.0
        weight[known] = torch.from_numpy(fitted.coef_).float() / std
        bias[known] = torch.from_numpy(fitted.intercept_).float() - weight[known] @ mean
        self.register_buffer("weight", weight.view(count, -1, kernel, kernel))
        self.register_buffer("bias", bias)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        return F.conv2d(maps.float(), self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def read(self, around: Float[Tensor, "M D"]) -> Int[np.ndarray, " M"]:
        """The likeliest class in the middle of each neighbourhood."""
        return F.linear(around, self.weight.flatten(1), self.bias).argmax(1).numpy()


def neighbourhoods(
    maps: Float[Tensor, "N C H W"], rows: Int[np.ndarray, " M"], places: Int[np.ndarray, " M"], kernel: int = _KERNEL
) -> Float[Tensor, "M D"]:
    """The D = C x k x k numbers around positions of maps, zeros beyond the edge.

    Args:
        maps: activations.
        rows, places: which of them, and which position of it.
        kernel: k, odd.
    """
    return F.unfold(maps, kernel, padding=kernel // 2)[rows, :, places]


class CellSamples(NamedTuple):
    """What M cells of a map look like, and what lies in them.

    Attributes:
        around: neighbourhoods of their middles.
        classes: index into `SEEN`, or the class after.
        rows: which frame each is of, ascending.
    """

    around: Float[Tensor, "M D"]
    classes: Int[np.ndarray, " M"]
    rows: Int[np.ndarray, " M"]


class Samples(NamedTuple):
    """What an agent makes of views, as far as the probes read it.

    Attributes:
        cells: of each map: every key and the gem, and of each frame one position in no entity's cell, of floor or wall.
        goals: what a flat tap says to each of N frames; nothing if none was asked for.
        pursued: as in `Views`.
    """

    cells: dict[str, CellSamples]
    goals: Float[Tensor, "N G"]
    pursued: Int[np.ndarray, " N"]


@torch.no_grad()
def sample(
    agent: TappedAgent,
    views: Views,
    map_taps: Sequence[str],
    goal_tap: str | None = None,
    edits: Sequence[Edit] = (),
    seed: int = 0,
) -> Samples:
    """What the agent, with edits, makes of views.

    Args:
        agent: whose taps are read.
        views: that it is shown.
        map_taps: maps laid over the whole frame.
        goal_tap: a flat tap.
        edits: put in at the agent's taps.
        seed: of the empty cells that are asked about.

    Raises:
        ValueError: a tap that the agent does not have, or of the wrong kind.
    """
    goals = [] if goal_tap is None else [goal_tap]
    agent.check_taps([*map_taps, *goals])
    for taps, axes, kind in ((map_taps, 3, "a map"), (goals, 1, "flat")):
        for tap in taps:
            if len(agent.taps[tap]) != axes:
                raise ValueError(f"{tap} must be {kind}: choose other taps to read")
    asked = {tap: _cells(agent, views, tap, seed) for tap in map_taps}
    found: dict[str, list[Tensor]] = {tap: [] for tap in (*map_taps, *goals)}
    device = next(agent.parameters()).device
    for start in range(0, len(views.frames), _BATCH):  # whole maps of all frames would be gigabytes
        frames = torch.from_numpy(views.frames[start : start + _BATCH]).to(device)
        acts = agent.forward(frames, record=tuple(found), edits=edits, outputs=False).activations
        for tap, (rows, places, _) in asked.items():
            here = (start <= rows) & (rows < start + _BATCH)
            found[tap].append(neighbourhoods(acts[tap].float().cpu(), rows[here] - start, places[here]))
        for tap in goals:
            found[tap].append(acts[tap].float().cpu())
    read = {tap: torch.cat(parts) for tap, parts in found.items()}
    return Samples(
        {tap: CellSamples(read[tap], classes, rows) for tap, (rows, _, classes) in asked.items()},
        read[goal_tap] if goal_tap is not None else torch.empty(len(views.frames), 0),
        views.pursued,
    )


def cell_readers(samples: Sequence[Samples]) -> dict[str, CellReader]:
    """A reader of each map, fitted on all cells of the samples."""
    readers = {}
    for tap in samples[0].cells:
        cells = [one.cells[tap] for one in samples]
        readers[tap] = CellReader(
            torch.cat([one.around for one in cells]), np.concatenate([one.classes for one in cells])
        )
    return readers


class PerceptionProbes:
    """Both probes, fitted on samples of an agent's play.

    Args:
        samples: all of the same taps.

    Raises:
        ValueError: nothing is pursued in any of them.
    """

    def __init__(self, samples: Sequence[Samples]) -> None:
        self._seen = cell_readers(samples)
        goals, pursued = torch.cat([one.goals for one in samples]), np.concatenate([one.pursued for one in samples])
        known = pursued >= 0
        if not known.any():
            raise ValueError("nothing is pursued in what the probes are fitted on: give play that touches something")
        self._pursued = Ridge(goals[known], torch.from_numpy(pursued[known]), len(SEEN))

    def right(self, samples: Samples) -> dict[str, Bool[np.ndarray, " M"]]:
        """Of each map and cell, whether it is read rightly."""
        return {tap: self._seen[tap].read(cells.around) == cells.classes for tap, cells in samples.cells.items()}

    def pursued(self, samples: Samples) -> Int[np.ndarray, " N"]:
        """What each frame is read to pursue: index into `SEEN`."""
        return self._pursued(samples.goals).numpy()


def _cells(
    agent: TappedAgent, views: Views, tap: str, seed: int
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """(frame's row, position on the map, class) of each cell that is asked about."""
    _, height, width = agent.taps[tap]
    where = positions({name: getattr(views.labels, name) for name in Labels.__slots__}, height, width)
    rng, found = np.random.default_rng(seed), []
    for row, taken in enumerate(where):
        lying = [(row, taken[ENTITIES.index(name)], place) for place, name in enumerate(SEEN)]
        found += [one for one in lying if one[1] >= 0]
        inside = _inside_entities(views.labels, row, height, width)  # on a fine map more than their middles
        found.append((row, rng.choice(np.setdiff1d(np.flatnonzero(~inside), taken)), _EMPTY))
    rows, places, classes = np.array(found).T
    return rows, places, classes


def _inside_entities(labels: Labels, row: int, height: int, width: int) -> Bool[np.ndarray, " HW"]:
    """Which positions of a map have their middle in the cell of an entity, of one frame."""
    side, cells = int(labels.world_dim[row]), labels.cells[row]
    columns = ((np.arange(width) + 0.5) / width * side).astype(int)
    lines = (side - (np.arange(height) + 0.5) / height * side).astype(int)  # row 0 is the top, cells count from below
    return ((columns[None, :, None] == cells[:, 0]) & (lines[:, None, None] == cells[:, 1])).any(-1).ravel()
