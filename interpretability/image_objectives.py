"""What an optimised image is to drive: a unit, a difference of two, or any direction over a tap's units."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from interpretability.opened_relu import OpenedReLU
from networks import Edit, Precision, SAEBase, TappedAgent, autocast

_NEARNESS = 1.0  # standard deviations over places of a pre-activation for which a place counts e times as much
SILENT = 1e-4  # what traces that `OpenedReLU` leaves may add up to
_LEAST_COSINE = 0.1  # as in the activation atlas: a wrong direction still has a gradient


class Unit(NamedTuple):
    """One unit.

    Attributes:
        number: channel of the tap (of `logits`: the action; of `value`: 0), or latent of the autoencoder.
        position: (y, x) on the tap's map; None for the mean over the map.
        sign: -1 for how far it is below 0, on a tap that falls below 0.
    """

    number: int
    position: tuple[int, int] | None = None
    sign: Literal[1, -1] = 1


class LayerDirection(NamedTuple):
    """A direction over all units of the tap or the autoencoder, such as a probe's.

    What is driven is v . a x max(.1, cos(v, a))^power at each position (Carter et al. 2019,
    https://distill.pub/2019/activation-atlas): with power 0 as far along the direction as possible, with a higher one
    along it rather than along anything that has a part in it.

    Attributes:
        vector: v, a number a unit.
        position: (y, x) on the tap's map; None for the mean over the map.
        cosine_power: how much the angle matters.
    """

    vector: Float[Tensor, " F"]
    position: tuple[int, int] | None = None
    cosine_power: float = 0.0


Objective = Unit | LayerDirection


def difference(first: int, second: int, units: int, position: tuple[int, int] | None = None) -> LayerDirection:
    """The first unit without the second, of so many.

    Raises:
        ValueError: a unit that does not exist.
    """
    if not (0 <= first < units and 0 <= second < units):
        raise ValueError(f"there are {units} units, numbered from 0: {first} and {second} are not two of them")
    vector = torch.zeros(units)
    vector[first] += 1
    vector[second] -= 1
    return LayerDirection(vector, position)


class Response:
    """What each image does to what it is to drive.

    Args:
        agent: the network.
        tap: where the units are.
        objectives: one an image.
        sae: whose latents the units are; channels of the tap without it.
        precision: of the network's passes.

    Raises:
        ValueError: an unknown tap, a unit or position that it does not have, a direction of another length, no
            objective.
    """

    def __init__(
        self,
        agent: TappedAgent,
        tap: str,
        objectives: Sequence[Objective],
        sae: SAEBase | None,
        precision: Precision,
    ) -> None:
        agent.check_taps([tap])
        if not objectives:
            raise ValueError("no unit was asked for: name at least one")
        self._agent, self._tap, self._sae = agent, tap, sae
        self._precision: Precision = precision
        self._device = next(agent.parameters()).device
        befores = [name for name in agent.taps if name.endswith(".pre")] if agent.rectifies else []
        # an autoencoder's activation function lies behind the tap, a channel's own ReLU just before it
        self._before = f"{tap}.pre" if f"{tap}.pre" in befores and sae is None else tap
        self._opening: list[Edit] = [(name, OpenedReLU()) for name in befores if name not in (tap, self._before)]
        with torch.no_grad():
            self._shape = tuple(self._all_maps(torch.zeros(1, 64, 64, 3, device=self._device), ())[1].shape[1:])
        most = max(1 if isinstance(each, Unit) else self._shape[0] for each in objectives)
        # the units that each objective is made of, so that one of a single unit does not pay for all of a layer
        self._units = torch.zeros(len(objectives), most, dtype=torch.int64, device=self._device)
        self._weights = torch.zeros(len(objectives), most, device=self._device)
        self._places = torch.zeros(len(objectives), *self._shape[1:], device=self._device)
        self._powers = torch.zeros(len(objectives), device=self._device)
        for row, objective in enumerate(objectives):
            self._place(row, objective)

    def _place(self, row: int, objective: Objective) -> None:
        number, height, width = self._shape
        y, x = objective.position or (0, 0)
        known = not isinstance(objective, Unit) or 0 <= objective.number < number
        if not (known and 0 <= y < height and 0 <= x < width):
            raise ValueError(
                f"{objective} does not exist: {self._tap} has {number} units on maps of {height} x {width}"
            )
        if objective.position is None:
            self._places[row] = 1 / (height * width)
        else:
            self._places[row, y, x] = 1
        if isinstance(objective, Unit):
            self._units[row, 0], self._weights[row, 0] = objective.number, objective.sign
            return
        if objective.vector.shape != (number,) or objective.cosine_power < 0:
            raise ValueError(
                f"a direction of {tuple(objective.vector.shape)} numbers with cosine_power {objective.cosine_power}: "
                f"{self._tap} has {number} units, and the power is at least 0"
            )
        self._units[row] = torch.arange(number)
        self._weights[row] = objective.vector
        self._powers[row] = objective.cosine_power

    def driven(self, frames: Float[Tensor, "U 64 64 3"], *, leak: float = 0.0, opened: bool = False) -> "Driven":
        """What each image drives.

        Args:
            frames: an image an objective.
            leak: share of its pre-activation that counts where a wanted unit is silent.
            opened: let gradients past ReLUs that block them.
        """
        before, after, channels = self._pass(frames, self._opening if opened else ())
        rows = torch.arange(len(frames), device=self._device)[:, None]
        own = after[rows, self._units]
        weights = self._weights[:, :, None, None]
        maps = (own * weights).sum(1)
        leaks = torch.zeros_like(maps)
        if leak > 0:
            # only what is wanted leaks: a unit that is to be silent is done once it is
            waiting = (own <= SILENT) & (weights > 0)
            leaks = leak * (self._nearly(before[rows, self._units], waiting) * weights).sum(1)
        if self._powers.any():
            lengths = after.norm(dim=1) * self._weights.norm(dim=1)[:, None, None]
            bend = self._bend(maps, lengths)
            maps, leaks = maps * bend, leaks * bend
        goal = self._over_places(maps)
        return Driven(maps, goal, goal + leaks.sum((1, 2)), channels)

    def _nearly(self, before: Float[Tensor, "U F H W"], waiting: Bool[Tensor, "U F H W"]) -> Float[Tensor, "U F H W"]:
        """Pre-activations of units where they are silent, all the more of a place the nearer it is to firing.

        Their weights add up to the share of the places that are silent. Were all places alike, a unit that fires
        rarely would be raised everywhere a little and nowhere enough.
        """
        places = self._places[:, None]
        waiting = waiting & (places > 0)
        known = before.detach()
        spread = _NEARNESS * known.flatten(2).std(2, correction=0)[:, :, None, None] + torch.finfo(known.dtype).tiny
        nearness = (known / spread).masked_fill(~waiting, -torch.inf).flatten(2).softmax(2).nan_to_num().view_as(known)
        return nearness * before * (places * waiting).sum((2, 3), keepdim=True)

    def highest(self, frames: Float[Tensor, "K 64 64 3"]) -> Float[Tensor, " U"]:
        """The most that any of the frames has of each objective: at its own position, or at any."""
        with torch.no_grad():
            _, after = self._all_maps(frames, ())
            maps = torch.einsum("kfhw,uf->kuhw", after, self._dense())
            if self._powers.any():
                lengths = after.norm(dim=1)[:, None] * self._weights.norm(dim=1)[:, None, None]
                maps = maps * self._bend(maps, lengths)
        return maps.masked_fill(self._places == 0, -torch.inf).amax((0, 2, 3))

    def to_all(self, frames: Float[Tensor, "K 64 64 3"]) -> tuple[Float[Tensor, "U K"], Float[Tensor, "U K"]]:
        """How far each of any frames goes along every objective, before and after the activation function."""
        weights = self._dense()
        before, after = (
            torch.einsum("kfhw,uf,uhw->uk", maps, weights, self._places) for maps in self._all_maps(frames, ())
        )
        return before, after

    def _dense(self) -> Float[Tensor, "U F"]:
        weights = torch.zeros(len(self._units), self._shape[0], device=self._device)
        return weights.scatter_add_(1, self._units, self._weights)

    def _bend(self, maps: Float[Tensor, "... U H W"], lengths: Tensor) -> Tensor:
        """The cosine's part of the objective, from v . a and |v| |a|."""
        cosine = (maps / lengths.clamp(min=1e-12)).clamp(min=_LEAST_COSINE)
        return cosine ** self._powers[:, None, None]

    def _over_places(self, maps_UHW: Tensor) -> Float[Tensor, " U"]:
        return (maps_UHW * self._places).sum((1, 2))

    def _all_maps(self, frames: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
        before, after, _ = self._pass(frames, edits)
        return before, after

    def _pass(self, frames: Tensor, edits: Sequence[Edit]) -> tuple[Tensor, Tensor, Tensor]:
        record = (self._before, self._tap)
        with autocast(self._precision, self._device):
            # forward() rather than __call__: a network compiled for training is not compiled again for this
            acts = self._agent.forward(frames, record=record, edits=edits, outputs=False).activations
            before, after = acts[self._before], acts[self._tap]
            channels = after
            if self._sae is not None:
                before, after = self._sae.pre_activations(after), self._sae.encode(after)
        return _as_maps(before), _as_maps(after), _as_maps(channels)


class Driven(NamedTuple):
    """What a batch of images drives.

    Attributes:
        maps: the objective at every position.
        goal: over the objective's own position, or the mean.
        gain: the goal with what leaks: what ascent climbs.
        channels: the tap's activations.
    """

    maps: Float[Tensor, "U H W"]
    goal: Float[Tensor, " U"]
    gain: Float[Tensor, " U"]
    channels: Float[Tensor, "U C H W"]


def likeness(channels_UCHW: Float[Tensor, "U C H W"], groups: Sequence[Sequence[int]]) -> Float[Tensor, " U"]:
    """How like the others of its group each image looks to the tap: mean cosine of their Gram matrices.

    The Gram matrix of channels over positions says which features meet, wherever they are (Olah et al. 2017, after
    Gatys et al. 2015).

    Args:
        channels_UCHW: the tap's activations.
        groups: rows that are to differ; an image alone is like nothing.
    """
    flat = channels_UCHW.flatten(2)
    grams = functional.normalize((flat @ flat.transpose(1, 2)).flatten(1), dim=1)
    result = torch.zeros(len(grams), device=grams.device)
    for rows in groups:
        if len(rows) > 1:
            cosines = grams[rows] @ grams[rows].T
            result = result.index_add(0, torch.tensor(rows, device=grams.device), (cosines.sum(1) - 1) / len(rows[1:]))
    return result


def _as_maps(acts: Tensor) -> Float[Tensor, "B F H W"]:
    """Activations of any tap as float32 maps: flat taps as 1 x 1."""
    return acts.float().reshape(len(acts), -1, *(acts.shape[2:] or (1, 1)))
