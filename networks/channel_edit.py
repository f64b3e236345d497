"""A small edit of a tap: a few channels (or neurons) scaled and shifted, the same at every position."""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from networks.taps import TappedNetwork
from networks.weights import load_into, read_weights


class ChannelEdit(nn.Module):
    """acts + scale x acts + shift on each channel; a channel whose scale and shift are 0 is left alone.

    Args:
        num_units: C, channels of a map or neurons of a flat tap.

    Attributes:
        scale, shift: of each unit, [C].
    """

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(num_units))
        self.shift = nn.Parameter(torch.zeros(num_units))

    def forward(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        return acts + self.change(acts)

    def change(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        """What the edit adds."""
        shape = (1, -1, *[1] * (acts.ndim - 2))
        return acts * self.scale.to(acts.dtype).view(shape) + self.shift.to(acts.dtype).view(shape)

    @property
    def units(self) -> Int[Tensor, " n"]:
        """The units that it changes."""
        return torch.nonzero((self.scale != 0) | (self.shift != 0)).flatten()

    def size(self, squares: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """An upper bound on each unit's root mean squared change, where its activation's mean square is `squares`.

        The bound |scale| x rms + |shift| is differentiable but at 0, where it pulls units to exactly nothing.
        """
        return self.scale.abs() * squares.sqrt() + self.shift.abs()

    def config(self) -> dict[str, int]:
        """The constructor's arguments."""
        return {"num_units": len(self.scale)}


class RandomDirection(nn.Module):
    """Control of an edit: as large a change at every position, in one random direction.

    Args:
        edit: the controlled edit.
        seed: of the direction.
    """

    direction: Tensor

    def __init__(self, edit: ChannelEdit, seed: int = 0) -> None:
        super().__init__()
        self.edit = edit
        drawn = torch.randn(len(edit.scale), generator=torch.Generator().manual_seed(seed))
        self.register_buffer("direction", drawn / drawn.norm())

    def forward(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        norm = self.edit.change(acts).float().norm(dim=1, keepdim=True)
        return acts + (norm * self.direction.view(1, -1, *[1] * (acts.ndim - 2))).to(acts.dtype)


class ShamPosition(nn.Module):
    """Control of an edit of maps: the same change, moved by half the map along both axes.

    Only the scaled part is moved by that: a shift is the same everywhere, so that the sham of an edit that does
    nothing but shift is the edit itself.
    """

    def __init__(self, edit: ChannelEdit) -> None:
        super().__init__()
        self.edit = edit

    def forward(self, acts: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        height, width = acts.shape[2:]
        return acts + self.edit.change(acts).roll((height // 2, width // 2), (2, 3))


def on_random_units(edit: ChannelEdit, seed: int = 0) -> ChannelEdit:
    """Control of an edit: its scales and shifts on as many other units, drawn among those that it leaves alone.

    Where it changes more than half of the units, some of its own are drawn as well.
    """
    generator = torch.Generator().manual_seed(seed)
    units = edit.units.cpu()
    others = torch.tensor(
        [unit for unit in range(len(edit.scale)) if unit not in set(units.tolist())], dtype=torch.long
    )
    drawn = torch.cat([others[torch.randperm(len(others), generator=generator)], units.roll(1)])[: len(units)]
    moved = ChannelEdit(len(edit.scale)).to(edit.scale.device)
    with torch.no_grad():
        moved.scale[drawn], moved.shift[drawn] = edit.scale[units], edit.shift[units]
    return moved


def load_edit(path: str | Path, agent: TappedNetwork) -> tuple[str, str, ChannelEdit]:
    """(entity, tap, edit) of a file, for this agent or another of its architecture (whether it works is the question).

    Raises:
        ValueError: the file is missing or altered, holds no channel edit, or does not fit the agent's tap.
    """
    tensors, metadata = read_weights(path)
    if metadata.get("kind") != "ChannelEdit":
        raise ValueError(f"{path} holds no channel edit: pass what configs/studies/retargeting.yaml wrote")
    edit = ChannelEdit(**metadata["config"])
    load_into(edit, tensors, path)
    tap, units = str(metadata["tap"]), len(edit.scale)
    agent.check_taps([tap])
    if agent.taps[tap][0] != units:
        raise ValueError(f"{path} edits {units} units, this agent's {tap} has {agent.taps[tap][0]}: take another edit")
    return str(metadata["entity"]), tap, edit.eval()
