"""An agent built by hand that goes where one of its channels is highest."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from networks.taps import Step, TappedAgent


class PeakFollower(TappedAgent):
    """Goes left while the peak of the frame's red is above that of its green, else right.

    Channel c of the tap `map` is the mean of colour c in squares of 8 x 8 pixels; blue is read by nobody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "map.pre", lambda acts: functional.avg_pool2d(acts, 8)
        yield "map", functional.relu

    def heads(self) -> tuple[Step, Step]:
        return self._logits, lambda acts: acts.mean((1, 2, 3)).unsqueeze(1)

    def _logits(self, acts: Tensor) -> Tensor:
        peak = acts.amax((2, 3))
        logits = torch.full((len(acts), 15), -20.0)
        logits[:, 1], logits[:, 7] = 20 * peak[:, 0], 20 * peak[:, 1]
        return logits

    def config(self) -> dict[str, int | float | bool | str]:
        return {}


class EitherOr(PeakFollower):
    """Goes left while red or green is seen anywhere, else right: either of the two channels will do."""

    def _logits(self, acts: Tensor) -> Tensor:
        seen = acts.amax((2, 3))[:, :2].amax(1) > 0
        return functional.one_hot(torch.where(seen, 1, 7), 15) * 50.0


class PlaceFollower(TappedAgent):
    """Walks towards the peak of one channel; where that is dark it stands still.

    Channels of the tap `map`, means over squares of 4 x 4 pixels: what is as yellow as the gem (followed), what is as
    white as the player (its centre is where the agent believes itself to be), blue and brightness (read by nobody).
    """

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "map.pre", self._map
        yield "map", functional.relu

    def heads(self) -> tuple[Step, Step]:
        return self._logits, lambda acts: acts.mean((1, 2, 3)).unsqueeze(1)

    @staticmethod
    def _map(frames: Tensor) -> Tensor:
        red, green, blue = frames.unbind(1)
        yellow = (torch.minimum(red, green) - blue - 0.5).relu()
        white = (frames.amin(1) - 0.85).relu()
        return functional.avg_pool2d(torch.stack([yellow, white, blue, frames.mean(1)], 1), 4)

    @staticmethod
    def _logits(acts: Tensor) -> Tensor:
        gem, player = acts[:, 0], acts[:, 1]
        side = acts.shape[-1]
        places = torch.arange(side) + 0.5
        peak = functional.one_hot(gem.flatten(1).argmax(1), side * side).view_as(gem)
        mass = player.sum((1, 2)).clamp(min=1e-9)
        dx = (peak.sum(1) * places).sum(1) - (player.sum(1) * places).sum(1) / mass
        dy = (peak.sum(2) * places).sum(1) - (player.sum(2) * places).sum(1) / mass
        step = [torch.where(d.abs() > 0.6, d.sign(), 0.0) for d in (dx, -dy)]
        action = torch.where(gem.amax((1, 2)) > 0, (step[0] + 1) * 3 + step[1] + 1, 4)
        return functional.one_hot(action.long(), 15) * 50.0

    def config(self) -> dict[str, int | float | bool | str]:
        return {}


class Pushed(nn.Module):
    """Edit of the logits: one action all the time."""

    def __init__(self, action: int) -> None:
        super().__init__()
        self.action = action

    def forward(self, logits):
        return torch.nn.functional.one_hot(torch.full((len(logits),), self.action), 15) * 100.0


class Compass(TappedAgent):
    """Sees walls and keys around a player in the middle cell of heist's easy world, and goes where the way starts.

    Units of the tap `seen`, four each in the order of `DIRECTIONS`: whether the cell next to the player on that side is
    open; whether a way of three cells that starts there, and three more to either side, is open from end to end; how
    much blue there is on that side of the player. The corner of the world has to be wall.
    """

    _SIDE = 9
    _STEPS = ((-1, 0), (0, -1), (0, 1), (1, 0))

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "seen.pre", self._look
        yield "seen", functional.relu

    def heads(self) -> tuple[Step, Step]:
        return self._logits, lambda acts: acts.mean(1, keepdim=True)

    def _look(self, frames: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool2d(frames, self._SIDE).flip(2)  # [B 3 y x], y upwards
        open_cells = ((cells - cells[..., :1, :1]).abs().amax(1) > 0.14).float()
        blue = (frames[:, 2] - frames[:, 0] - 0.3).relu()
        middle = self._SIDE // 2
        seen: list[list[Tensor]] = [[], [], []]
        for dx, dy in self._STEPS:
            leg = [(middle + dx * n, middle + dy * n) for n in (1, 2, 3)]
            turned = [[(leg[-1][0] + t * dy * n, leg[-1][1] + t * dx * n) for n in (1, 2, 3)] for t in (1, -1)]
            ways = [torch.stack([open_cells[:, y, x] for x, y in leg + turn]).amin(0) for turn in turned]
            seen[0].append(open_cells[:, leg[0][1], leg[0][0]])
            seen[1].append(torch.stack(ways).amax(0))
            columns, rows = (slice(0, 25), slice(40, 64)), (slice(40, 64), slice(0, 25))
            part = blue[:, :, columns[dx > 0]] if dx else blue[:, rows[dy > 0]]
            seen[2].append(part.mean((1, 2)))
        return torch.stack([*seen[0], *seen[1], *seen[2]], 1)

    def _logits(self, acts: Tensor) -> Tensor:
        logits = torch.full((len(acts), 15), -20.0)
        logits[:, [1, 3, 5, 7]] = 40 * acts[:, 4:8] - 20
        return logits

    def config(self) -> dict[str, int | float | bool | str]:
        return {}


class EntityEye(TappedAgent):
    """Knows heist's entities by their colours, pixel by pixel.

    Channels of the tap `map`: 3 where there is blue, 2 where there is green and 1 where there is red (one channel's
    level says which); blue alone; the gem alone; what is always the same.
    """

    _COLOURS = ((28, 164, 228), (116, 204, 76), (236, 108, 20), (252, 228, 132))

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self._find_taps()

    def trunk(self) -> Iterator[tuple[str, Step]]:
        yield "map.pre", self._look
        yield "map", functional.relu

    def heads(self) -> tuple[Step, Step]:
        return lambda acts: acts.new_zeros(len(acts), 15), lambda acts: acts.mean((1, 2, 3)).unsqueeze(1)

    def _look(self, frames: Tensor) -> Tensor:
        colours = torch.tensor(self._COLOURS) / 255
        blue, green, red, gem = (
            ((frames - colour[:, None, None]).abs().amax(1) < 6 / 255).float() for colour in colours
        )
        return torch.stack([3 * blue + 2 * green + red, blue, gem, torch.ones_like(gem)], 1)

    def config(self) -> dict[str, int | float | bool | str]:
        return {}
