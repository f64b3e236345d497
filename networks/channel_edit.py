"""Edits of a tap, the same at every position: a few channels scaled and shifted, channels mixed anew, or a map
repainted by a small convolution.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

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
        self.num_units = num_units
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

    def on_units(self, order: Int[Tensor, " C"]) -> "ChannelEdit":
        """The same edit with unit `order[i]` in the place of unit i."""
        moved = ChannelEdit(self.num_units).to(self.scale.device)
        with torch.no_grad():
            moved.scale[order], moved.shift[order] = self.scale.detach(), self.shift.detach()
        return moved

    def config(self) -> dict[str, int]:
        """The constructor's arguments."""
        return {"num_units": self.num_units}


class MixingEdit(nn.Module):
    """acts + write (read . acts) + shift at each position: some directions of channels are read, and others written.

    With as many directions as channels this is any affine map of the channels; a fresh one changes nothing.

    Args:
        num_units: C, channels of a map or neurons of a flat tap.
        rank: R, directions.
        seed: of those read at first.

    Attributes:
        read: [R C].
        write: [C R].
        shift: [C].
    """

    def __init__(self, num_units: int, rank: int, seed: int = 0) -> None:
        super().__init__()
        self.num_units, self.rank = num_units, rank
        drawn = torch.randn(rank, num_units, generator=torch.Generator().manual_seed(seed))
        self.read = nn.Parameter(drawn / num_units**0.5)
        self.write = nn.Parameter(torch.zeros(num_units, rank))
        self.shift = nn.Parameter(torch.zeros(num_units))

    def forward(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        return acts + self.change(acts)

    def change(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        """What the edit adds."""
        mixed = (self.write @ self.read).to(acts.dtype)
        if acts.ndim == 2:
            return nn.functional.linear(acts, mixed, self.shift.to(acts.dtype))
        return nn.functional.conv2d(acts, mixed[:, :, None, None], self.shift.to(acts.dtype))

    @property
    def units(self) -> Int[Tensor, " n"]:
        """The units that it changes."""
        return torch.nonzero((self.write != 0).any(1) | (self.shift != 0)).flatten()

    def on_units(self, order: Int[Tensor, " C"]) -> "MixingEdit":
        """The same edit with unit `order[i]` in the place of unit i."""
        moved = MixingEdit(self.num_units, self.rank).to(self.shift.device)
        with torch.no_grad():
            moved.read[:, order], moved.write[order] = self.read.detach(), self.write.detach()
            moved.shift[order] = self.shift.detach()
        return moved

    def config(self) -> dict[str, int]:
        """The constructor's arguments."""
        return {"num_units": self.num_units, "rank": self.rank}


class RepaintEdit(nn.Module):
    """acts + write * relu(read * acts), two convolutions: what small detectors see around a position is painted over.

    A fresh one changes nothing. At flat taps only the middle of the kernels counts.

    Args:
        num_units: C, channels of a map or neurons of a flat tap.
        hidden: D, detectors.
        kernel: side of both kernels, odd; 1 sees and changes one position.
        seed: of the detectors at first.
        written: units that training may change; None for all. All are read.

    Attributes:
        read: C to D channels, with a threshold each.
        write: D to C channels, with a shift each.
    """

    may: Tensor

    def __init__(
        self, num_units: int, hidden: int, kernel: int = 3, seed: int = 0, written: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.num_units, self.hidden, self.kernel = num_units, hidden, kernel
        may = (
            torch.ones(num_units) if written is None else torch.zeros(num_units).index_fill(0, torch.tensor(written), 1)
        )
        self.register_buffer(
            "may", may.view(-1, 1, 1), persistent=False
        )  # weights that it holds at 0 are saved as such
        self.read = nn.Conv2d(num_units, hidden, kernel, padding=kernel // 2)
        self.write = nn.Conv2d(hidden, num_units, kernel, padding=kernel // 2)
        assert self.read.bias is not None
        assert self.write.bias is not None
        drawn = torch.rand(self.read.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.read.weight.copy_((2 * drawn - 1) / (num_units * kernel**2) ** 0.5)
        for tensor in (self.read.bias, self.write.weight, self.write.bias):
            nn.init.zeros_(tensor)

    def forward(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        return acts + self.change(acts)

    def change(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        """What the edit adds."""
        maps = acts[:, :, None, None] if acts.ndim == 2 else acts
        painted = self.write(torch.relu(self.read(maps.to(self.read.weight.dtype)))) * self.may
        return painted.to(acts.dtype).view_as(acts)

    @property
    def units(self) -> Int[Tensor, " n"]:
        """The units that it changes."""
        assert self.write.bias is not None
        return torch.nonzero((self.write.weight != 0).flatten(1).any(1) | (self.write.bias != 0)).flatten()

    def on_units(self, order: Int[Tensor, " C"]) -> "RepaintEdit":
        """The same edit with unit `order[i]` in the place of unit i."""
        moved = RepaintEdit(self.num_units, self.hidden, self.kernel).to(self.read.weight.device)
        moved.load_state_dict(self.state_dict())
        with torch.no_grad():
            assert moved.write.bias is not None
            assert self.write.bias is not None
            moved.read.weight[:, order] = self.read.weight.detach()
            moved.write.weight[order], moved.write.bias[order] = self.write.weight.detach(), self.write.bias.detach()
        return moved

    def config(self) -> dict[str, int]:
        """The constructor's arguments."""
        return {"num_units": self.num_units, "hidden": self.hidden, "kernel": self.kernel}


TapEdit = ChannelEdit | MixingEdit | RepaintEdit


class Changes(Protocol):
    """An edit that says what it adds."""

    num_units: int

    def change(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        """What the edit adds."""


class RandomDirection(nn.Module):
    """Control of an edit: as large a change at every position, in one random direction.

    Args:
        edit: the controlled edit.
        seed: of the direction.
    """

    direction: Tensor

    def __init__(self, edit: Changes, seed: int = 0) -> None:
        super().__init__()
        self.edit = edit
        drawn = torch.randn(edit.num_units, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("direction", drawn / drawn.norm())

    def forward(self, acts: Float[Tensor, "B C *space"]) -> Float[Tensor, "B C *space"]:
        norm = self.edit.change(acts).float().norm(dim=1, keepdim=True)
        return acts + (norm * self.direction.view(1, -1, *[1] * (acts.ndim - 2))).to(acts.dtype)


class ShamPosition(nn.Module):
    """Control of an edit of maps: the same change, moved by half the map along both axes.

    Only what depends on the activation is moved by that: a shift is the same everywhere, so that the sham of an edit
    that does nothing but shift is the edit itself.
    """

    def __init__(self, edit: TapEdit) -> None:
        super().__init__()
        self.edit = edit

    def forward(self, acts: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        height, width = acts.shape[2:]
        return acts + self.edit.change(acts).roll((height // 2, width // 2), (2, 3))


def on_random_units(edit: TapEdit, seed: int = 0) -> TapEdit:
    """Control of an edit: the same edit of as many other units, drawn among those that it leaves alone; each changes
    places with one of the edit's own, and all the rest stay as they are.

    Where it changes more than half of the units, some of its own are drawn as well, each in another's place.
    """
    generator = torch.Generator().manual_seed(seed)
    units = edit.units.cpu()
    own = set(units.tolist())
    others = torch.tensor([unit for unit in range(edit.num_units) if unit not in own], dtype=torch.long)
    drawn = torch.cat([others[torch.randperm(len(others), generator=generator)], units.roll(1)])[: len(units)]
    displaced = [unit for unit in drawn.tolist() if unit not in own]
    freed = [unit for unit in units.tolist() if unit not in set(drawn.tolist())]
    order = torch.arange(edit.num_units)
    order[units], order[displaced] = drawn, torch.tensor(freed, dtype=torch.long)
    return edit.on_units(order)


KINDS: dict[str, Callable[..., TapEdit]] = {
    "ChannelEdit": ChannelEdit,
    "MixingEdit": MixingEdit,
    "RepaintEdit": RepaintEdit,
}


def load_edit(path: str | Path, agent: TappedNetwork) -> tuple[str, str, TapEdit]:
    """(entity, tap, edit) of a file, for this agent or another of its architecture (whether it works is the question).

    Raises:
        ValueError: the file is missing or altered, holds no such edit, or does not fit the agent's tap.
    """
    tensors, metadata = read_weights(path)
    if metadata.get("kind") not in KINDS:
        raise ValueError(f"{path} holds no edit of channels: pass what configs/studies/retargeting.yaml wrote")
    config: dict[str, Any] = metadata["config"]
    edit = KINDS[str(metadata["kind"])](**config)
    load_into(edit, tensors, path)
    tap, units = str(metadata["tap"]), edit.num_units
    there = agent.taps.get(tap, (0,))[0]
    if there != units:
        raise ValueError(
            f"{path} edits {units} units of {tap}, of which this {agent.architecture} has {there}: take another edit"
        )
    return str(metadata["entity"]), tap, edit.eval()
