"""Does an edit change what the agent sees or what it wants? Probes fitted on untouched play, read with the edit.

One probe asks of the cells of a map what lies there: a key of which colour, the gem, or nothing. The other asks of a
late flat tap which entity the agent will touch next. An edit of the goal alone leaves the first as it was and turns the
second to the asked entity; an edit that repaints the maze turns both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from environments.heist import ENTITIES, Labels, positions
from networks.taps import Edit, TappedAgent

SEEN = ("blue_key", "green_key", "red_key", "gem")
"""What may lie in a cell; the class after these is an empty one."""
_EMPTY = len(SEEN)
_BATCH = 256


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


class PerceptionProbes:
    """Both probes, fitted on some views without an edit.

    Args:
        agent: whose taps are read.
        views: to fit on.
        map_tap: a map laid over the whole frame, of whose cells one probe asks what lies there.
        goal_tap: a flat tap, of which the other asks what is touched next.
        seed: of the empty cells that are asked about.

    Raises:
        ValueError: a tap that the agent does not have, or of the wrong kind.
    """

    def __init__(
        self, agent: TappedAgent, views: Views, map_tap: str = "conv3a", goal_tap: str = "fc1", seed: int = 0
    ) -> None:
        agent.check_taps([map_tap, goal_tap])
        if len(agent.taps[map_tap]) != 3 or len(agent.taps[goal_tap]) != 1:
            raise ValueError(f"{map_tap} must be a map and {goal_tap} flat: choose other taps to read")
        self._agent, self._taps, self._seed = agent, (map_tap, goal_tap), seed
        rows, places, classes = self._cells(views)
        maps, goals = self._read(views, ())
        self._seen = Ridge(maps[rows, :, places], torch.from_numpy(classes), _EMPTY + 1)
        known = views.pursued >= 0
        self._pursued = Ridge(goals[known], torch.from_numpy(views.pursued[known]), len(SEEN))

    def __call__(
        self, views: Views, edits: Sequence[Edit] = ()
    ) -> tuple[Int[np.ndarray, " M"], Bool[np.ndarray, " M"], Int[np.ndarray, " N"]]:
        """(the frame's row and whether it is read rightly, for each cell that is asked about; what each frame pursues).

        Every key and the gem is asked about, and of each frame one empty cell.
        """
        rows, places, classes = self._cells(views)
        maps, goals = self._read(views, edits)
        right = self._seen(maps[rows, :, places]).numpy() == classes
        return rows, right, self._pursued(goals).numpy()

    @torch.inference_mode()
    def _read(self, views: Views, edits: Sequence[Edit]) -> tuple[Float[Tensor, "N C P"], Float[Tensor, "N D"]]:
        device, parts = next(self._agent.parameters()).device, []
        for frames in torch.from_numpy(views.frames).split(_BATCH):
            output = self._agent.forward(frames.to(device), record=self._taps, edits=edits, outputs=False)
            parts.append([output.activations[tap].float().flatten(2 if tap == self._taps[0] else 1).cpu()
                          for tap in self._taps])  # fmt: skip
        maps, goals = (torch.cat([part[index] for part in parts]).clone() for index in range(2))
        return maps, goals

    def _cells(self, views: Views) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
        """(frame's row, position on the map, class) of each cell that is asked about."""
        _, height, width = self._agent.taps[self._taps[0]]
        where = positions({name: getattr(views.labels, name) for name in Labels.__slots__}, height, width)
        rng, found = np.random.default_rng(self._seed), []
        for row, taken in enumerate(where):
            lying = [(row, taken[ENTITIES.index(name)], place) for place, name in enumerate(SEEN)]
            found += [one for one in lying if one[1] >= 0]
            found.append((row, rng.choice(np.setdiff1d(np.arange(height * width), taken)), _EMPTY))
        rows, places, classes = np.array(found).T
        return rows, places, classes
