"""A tap's activation written from labels: maps of what lies where, and one convolution fitted by least squares.

Where an activation written this way can stand in the network's own place without loss, the labels say all that the
agent uses of it; what they leave out it does not need. Meant is what Taufeeque et al. (2025, arXiv 2506.10138) do for a
Sokoban agent: to say in the game's own terms what each map holds, and to test it by putting it in.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from environments import State
from environments.heist import COLOURS, DIRECTIONS, ENTITIES, label_states, plan, read_layout
from environments.heist.oracle import NO_TARGET
from environments.state import WALL
from interpretability.state_edits import StateEdit

SCENE: Final = ("wall", *(name for name in ENTITIES if name != "player"), "player", *(f"held_{c}" for c in COLOURS))
PLAN: Final = ("target", "way", *(f"player_going_{direction}" for direction in DIRECTIONS))
"""What the shortest solution adds: where the next pickup lies, the cells on the way to it, and the first move."""
_ROWS = 64  # frames at once in a fit


def label_maps(
    states: Sequence[bytes], height: int, width: int, count: int = len(SCENE)
) -> Float[Tensor, "B K height width"]:
    """What share of each position of a map over the whole frame belongs to a wall, an entity, the player, ...

    Held keys are 1 everywhere. Entities take their whole cell, the player one cell around its own centre.

    Args:
        states: of heist, in a mode whose frame shows the whole world.
        height, width: of the map.
        count: K, how many of `SCENE` and then `PLAN`.
    """
    labels = label_states(states)
    parsed = [State.from_bytes(state) for state in states]
    side = parsed[0].grid.shape[0]
    cells = np.zeros((len(states), len(SCENE) + len(PLAN), side, side), dtype=np.float32)  # y upwards
    cells[:, 0] = np.stack([state.grid == WALL for state in parsed])
    for place, name in enumerate(SCENE[1:-4], start=1):
        where = labels.cells[:, ENTITIES.index(name)]
        rows = np.flatnonzero(where[:, 0] >= 0)
        cells[rows, place, where[rows, 1], where[rows, 0]] = 1
    rows = np.flatnonzero(labels.target_cell[:, 0] >= 0)
    cells[rows, len(SCENE), labels.target_cell[rows, 1], labels.target_cell[rows, 0]] = 1
    if count > len(SCENE) + 1:
        for row, state in enumerate(parsed):
            for cell in way_cells(state):
                cells[row, len(SCENE) + 1, cell // side, cell % side] = 1
    down, across = _shares(side, height)[:, ::-1].copy(), _shares(side, width)  # rows of a map run downwards
    maps = torch.einsum("hy,bkyx,wx->bkhw", torch.from_numpy(down), torch.from_numpy(cells), torch.from_numpy(across))
    x, y = labels.position.T.astype(np.float32)
    player = torch.from_numpy(
        _covered(side - y - 0.5, side, height)[:, :, None] * _covered(x - 0.5, side, width)[:, None]
    )
    maps[:, SCENE.index("player")] = player
    maps[:, len(SCENE) - len(COLOURS) : len(SCENE)] = torch.from_numpy(labels.held.astype(np.float32))[..., None, None]
    known = np.where(labels.direction_tied, -1, labels.direction)
    for number in range(len(DIRECTIONS)):
        maps[:, len(SCENE) + 2 + number] = player * torch.from_numpy(known == number)[:, None, None]
    return maps[:, :count]


def way_cells(state: State) -> list[int]:
    """Cells from the player's next one to the next target's, along the shortest solution; none without one."""
    layout = read_layout(state)
    solution, cell, found = plan(layout.maze, layout.held), layout.player, []
    advice = solution.advise(cell, layout.held)
    if advice.target == NO_TARGET:
        return []
    for _ in range(advice.path_length):
        cell = solution.advise(cell, layout.held).next_cell
        found.append(cell)
    return found


def _shares(side: int, size: int) -> Float[np.ndarray, "size side"]:
    """What share of each position each cell takes, along one axis."""
    return _covered(np.arange(side, dtype=np.float32), side, size).T


def _covered(starts: Float[np.ndarray, " B"], side: int, size: int) -> Float[np.ndarray, "B size"]:
    """What share of each position an interval of one cell takes."""
    edges = np.arange(size + 1, dtype=np.float32) * side / size
    low, high = np.maximum(edges[:-1], starts[:, None]), np.minimum(edges[1:], starts[:, None] + 1)
    return (np.clip(high - low, 0, None) * size / side).astype(np.float32)


class LabelCode(nn.Module):
    """The tap's mean plus a convolution of label maps, less theirs; of flat taps a linear map of all cells.

    Args:
        weight: of the convolution, [C K k k]; or [C K H W], of the whole maps.
        maps_mean: mean of the label maps.
        mean: of the activation.
        floor: the least value that the tap takes, below which nothing is written.
    """

    weight: Tensor
    maps_mean: Tensor
    mean: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "C K k k"],
        maps_mean: Float[Tensor, "K H W"],
        mean: Float[Tensor, "C *HW"],
        floor: float,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("maps_mean", maps_mean)
        self.register_buffer("mean", mean)
        self.floor = floor

    def forward(self, maps: Float[Tensor, "B K H W"]) -> Float[Tensor, "B C *HW"]:
        with torch.autocast(maps.device.type, enabled=False):
            return (_linear(maps - self.maps_mean, self.weight, self.mean.ndim == 3) + self.mean).clamp(min=self.floor)

    def of_states(self, states: Sequence[bytes]) -> Float[Tensor, "B C *HW"]:
        """The activation written for some states."""
        count, height, width = self.maps_mean.shape
        maps = label_maps(states, height, width, count)
        written: Tensor = self(maps.to(self.mean.device))
        return written


def fit_code(
    maps: Float[Tensor, "N K H W"],
    acts: Float[Tensor, "N C *HW"],
    *,
    kernel: int = 5,
    penalty: float = 1e-4,
) -> LabelCode:
    """Least squares over frames and positions, about each position's own mean, with a little penalty on the weights.

    Args:
        maps: label maps of N frames, of the size of the tap's maps; of any size for a flat tap.
        acts: the tap's activation.
        kernel: side of the convolution, odd.
        penalty: on the squared weights, in units of the mean square of a label.

    Raises:
        ValueError: an even kernel, or maps of another size than the tap's.
    """
    spatial = acts.ndim == 4
    if kernel % 2 == 0 or kernel < 1:
        raise ValueError(f"kernel {kernel} has no middle: take an odd side")
    if spatial and maps.shape[2:] != acts.shape[2:]:
        raise ValueError(f"label maps of {tuple(maps.shape[2:])} for a tap of {tuple(acts.shape[2:])}: make them alike")
    maps_mean, mean = maps.mean(0), acts.double().mean(0).float()
    window = (kernel, kernel) if spatial else tuple(maps.shape[2:])
    size = maps.shape[1] * window[0] * window[1]
    gram = torch.zeros(size, size, dtype=torch.float64)
    products = torch.zeros(size, acts.shape[1], dtype=torch.float64)
    for some, wanted in zip(maps.split(_ROWS), acts.split(_ROWS), strict=True):
        padding = kernel // 2 if spatial else 0
        rows = functional.unfold(some - maps_mean, window, padding=padding).transpose(1, 2).flatten(0, 1)
        targets = (wanted.float() - mean).flatten(2).transpose(1, 2).flatten(0, 1) if spatial else wanted.float() - mean
        gram += (rows.T @ rows).double()
        products += (rows.T @ targets).double()
    gram += penalty * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    weight = torch.linalg.solve(gram, products).T.reshape(acts.shape[1], maps.shape[1], *window)
    floor = 0.0 if acts.min() >= 0 else -torch.inf
    return LabelCode(weight.float(), maps_mean, mean, floor)


def _linear(maps: Tensor, weight: Tensor, spatial: bool) -> Tensor:
    if spatial:
        return functional.conv2d(maps, weight, padding=weight.shape[-1] // 2)
    return functional.linear(maps.flatten(1), weight.flatten(1))


class Written(StateEdit):
    """Edit: what a code writes from the states' labels in place of the tap's own activation."""

    def __init__(self, code: LabelCode) -> None:
        super().__init__()
        self.code = code
        self._acts: Tensor | None = None

    def see(self, states: Sequence[bytes]) -> None:
        """The states of the next batch."""
        self._acts = self.code.of_states(states)

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        assert self._acts is not None
        assert len(self._acts) == len(acts), "see is told the states of each batch"
        return self._acts.to(acts.dtype)
