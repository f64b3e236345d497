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


class Pushed(nn.Module):
    """Edit of the logits: one action all the time."""

    def __init__(self, action: int) -> None:
        super().__init__()
        self.action = action

    def forward(self, logits):
        return torch.nn.functional.one_hot(torch.full((len(logits),), self.action), 15) * 100.0
