"""A probe's direction used as an edit, in units of the activation's standard deviation along it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from networks.linear_readout import Direction


class DirectionEdit(nn.Module):
    """What the edits along a direction share.

    A direction of a tap's whole shape has one component in each activation; one of channels alone ([C], from the
    position form) has one at each position of a map, and is edited at all of them or at those of `mask`.

    Args:
        direction: from `LinearReadout.direction`.
        mask: positions that are edited, [H W]; all without it.
    """

    vector: Tensor
    mean: Tensor
    std: Tensor
    mask: Tensor | None

    def __init__(self, direction: Direction, mask: Float[Tensor, "H W"] | None = None) -> None:
        super().__init__()
        self.register_buffer("vector", direction.vector.detach().clone())
        self.register_buffer("mean", torch.tensor(direction.mean))
        self.register_buffer("std", torch.tensor(direction.std))
        self.register_buffer("mask", None if mask is None else mask.detach().float())

    def component(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B *ones"]:
        """The activation's component along the direction, in float32, shaped to be multiplied with it."""
        vector = self._shaped(acts)
        axes = 1 if self._by_position(acts) else tuple(range(1, acts.ndim))
        return (acts.float() * vector).sum(axes, keepdim=True)

    def _move(self, acts: Tensor, amount: Tensor) -> Tensor:
        step = amount * self._shaped(acts)
        return acts + (step if self.mask is None else step * self.mask).to(acts.dtype)

    def _by_position(self, acts: Tensor) -> bool:
        return self.vector.ndim == 1 and acts.ndim == 4

    def _shaped(self, acts: Tensor) -> Tensor:
        return self.vector[:, None, None] if self._by_position(acts) else self.vector


class AddDirection(DirectionEdit):
    """Edit: the activation moved along the direction by so many standard deviations."""

    amount: Tensor

    def __init__(self, direction: Direction, amount: float, mask: Float[Tensor, "H W"] | None = None) -> None:
        super().__init__(direction, mask)
        self.register_buffer("amount", torch.tensor(float(amount)))

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        return self._move(acts, self.amount * self.std)


class AblateDirection(DirectionEdit):
    """Edit: the activation without its component along the direction."""

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        return self._move(acts, -self.component(acts))


class ProjectDirection(DirectionEdit):
    """Edit: the activation projected to where its component along the direction is `amount` standard deviations above
    its mean: what the probe reads is set, nothing else is moved. 0 leaves the mean there for every frame.
    """

    amount: Tensor

    def __init__(self, direction: Direction, amount: float = 0.0, mask: Float[Tensor, "H W"] | None = None) -> None:
        super().__init__(direction, mask)
        self.register_buffer("amount", torch.tensor(float(amount)))

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        return self._move(acts, self.mean + self.amount * self.std - self.component(acts))
