"""Does an edit change what the agent sees or what it wants? Probes fitted on untouched play, read with the edit.

One probe asks of the cells of maps what lies there: a key of which colour, the gem, or nothing. The other asks of a
late flat tap which entity the agent will touch next. An edit of the goal alone leaves the first as it was and turns the
second to the asked entity; an edit that repaints the maze turns both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
_STRENGTH = 0.1  # of readers: 1 over the penalty on squared weights of standardised features


@dataclass(frozen=True)
class Views:
    """Frames of play in mazes of choices, with what lies where and what the agent touched next.

    Attributes:
        frames: uint8 [N 64 64 3].
        labels: of their states.
        maze: which maze each is of.
        pursued: index into `SEEN` of what the unedited agent touched next, -1 where that was nothing.
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

    Multinomial logistic regression on standardised neighbourhoods of `kernel` x `kernel` positions; with the position
    alone, colours are hardly told (of `conv3a` of the shipped agents about half as well).

    Args:
        maps: activations to fit on.
        rows, places: which of them, and which position of it.
        classes: what lies there, from 0 to `count` - 1; one that never occurs is never read.
        count: K.
        kernel: odd side of the neighbourhood.

    Raises:
        ValueError: the same lies everywhere.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        maps: Float[Tensor, "N C H W"],
        rows: Int[np.ndarray, " M"],
        places: Int[np.ndarray, " M"],
        classes: Int[np.ndarray, " M"],
        count: int = _EMPTY + 1,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        around = torch.empty(len(rows), maps.shape[1] * kernel**2)
        for start in range(0, len(maps), _BATCH):  # all at once would be nine times the maps
            here = np.flatnonzero((start <= rows) & (rows < start + _BATCH))
            unfolded = F.unfold(maps[start : start + _BATCH], kernel, padding=kernel // 2)
            around[here] = unfolded[rows[here] - start, :, places[here]]
        mean, std = around.mean(0), around.std(0).clamp(min=1e-6)
        fitted = LogisticRegression(C=_STRENGTH, max_iter=500).fit(((around - mean) / std).numpy(), classes)
        known = fitted.classes_ if len(fitted.classes_) > 2 else fitted.classes_[1:]  # of two, the first has scores 0
        weight, bias = torch.zeros(count, around.shape[1]), torch.full((count,), _NEVER)
        bias[fitted.classes_] = 0.0
        weight[known] = torch.from_numpy(fitted.coef_).float() / std
        bias[known] = torch.from_numpy(fitted.intercept_).float() - weight[known] @ mean
        self.register_buffer("weight", weight.view(count, maps.shape[1], kernel, kernel))
        self.register_buffer("bias", bias)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        return F.conv2d(maps.float(), self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def cell_readers(agent: TappedAgent, views: Views, taps: Sequence[str], seed: int = 0) -> dict[str, CellReader]:
    """A reader of each map, fitted on the unedited agent's views.

    Args:
        agent: whose taps are read.
        views: to fit on.
        taps: maps laid over the whole frame.
        seed: of the empty cells that are asked about.

    Raises:
        ValueError: a tap that the agent does not have, or no map.
    """
    acts = _read(agent, views, taps)
    readers = {}
    for tap in taps:
        if len(agent.taps[tap]) != 3:
            raise ValueError(f"{tap} must be a map: choose other taps to read")
        readers[tap] = CellReader(acts[tap], *_cells(agent, views, tap, seed))
    return readers


class PerceptionProbes:
    """Both probes, fitted on some views without an edit.

    Args:
        agent: whose taps are read.
        views: to fit on.
        map_taps: maps laid over the whole frame, of whose cells one probe each asks what lies there.
        goal_tap: a flat tap, of which the other asks what is touched next.
        seed: of the empty cells that are asked about.

    Raises:
        ValueError: a tap that the agent does not have, or of the wrong kind.
    """

    def __init__(
        self,
        agent: TappedAgent,
        views: Views,
        map_taps: Sequence[str] = ("conv2b", "conv3a"),
        goal_tap: str = "fc1",
        seed: int = 0,
    ) -> None:
        agent.check_taps([*map_taps, goal_tap])
        if len(agent.taps[goal_tap]) != 1:
            raise ValueError(f"{goal_tap} must be flat: choose another tap to read")
        self._agent, self._goal_tap, self._seed = agent, goal_tap, seed
        self._seen = cell_readers(agent, views, map_taps, seed)
        goals, known = _read(agent, views, [goal_tap])[goal_tap], views.pursued >= 0
        self._pursued = Ridge(goals[known], torch.from_numpy(views.pursued[known]), len(SEEN))

    def __call__(
        self, views: Views, edits: Sequence[Edit] = ()
    ) -> tuple[dict[str, tuple[Int[np.ndarray, " M"], Bool[np.ndarray, " M"]]], Int[np.ndarray, " N"]]:
        """(by map tap the frame's row and whether it is read rightly, for each cell that is asked about; what each
        frame pursues).

        Every key and the gem is asked about, and of each frame one position in no entity's cell, of floor or wall.
        """
        acts = _read(self._agent, views, [*self._seen, self._goal_tap], edits)
        right = {}
        for tap, reader in self._seen.items():
            rows, places, classes = _cells(self._agent, views, tap, self._seed)
            scores = torch.cat([reader(part).flatten(2) for part in acts[tap].split(_BATCH)])
            right[tap] = rows, scores[rows, :, places].argmax(1).numpy() == classes
        return right, self._pursued(acts[self._goal_tap]).numpy()


@torch.inference_mode()
def _read(agent: TappedAgent, views: Views, taps: Sequence[str], edits: Sequence[Edit] = ()) -> Mapping[str, Tensor]:
    device = next(agent.parameters()).device
    parts = [
        agent.forward(frames.to(device), record=tuple(taps), edits=edits, outputs=False).activations
        for frames in torch.from_numpy(views.frames).split(_BATCH)
    ]
    return {tap: torch.cat([part[tap].float().cpu() for part in parts]).clone() for tap in taps}


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
