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
