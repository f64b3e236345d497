"""Edits that do something else to each row of a batch: many interventions are played at once, one an environment."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from networks.sae_base import SAEBase
from networks.taps import Edit, TappedAgent, TappedNetwork


class RowEdit(nn.Module, ABC):
    """An edit of T trials, of which each row of a batch undergoes its own.

    Whoever runs the network calls `assign` before each pass. The trials are tensors, so that any number of them share
    one compilation.

    Attributes:
        trials: which trial each row undergoes.
    """

    trials: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("trials", torch.zeros(0, dtype=torch.int64), persistent=False)

    @property
    @abstractmethod
    def num_trials(self) -> int:
        """T."""

    def assign(self, trials: Int64[Tensor, " B"]) -> None:
        """Say which trial each row of the next batch undergoes."""
        self.trials = trials.to(self.trials.device)


class UnitEdit(RowEdit):
    """A row edit of units: channels of a map, neurons of a flat tap, or latents of an autoencoder.

    Of latents, what their change adds to the reconstruction is added to the activation itself, so that the error of
    the reconstruction plays no part.

    Args:
        sae: of the latents; None for the tap's own units.
    """

    def __init__(self, sae: SAEBase | None = None) -> None:
        super().__init__()
        self._sae = [sae]  # in a list: not a part of this edit's parameters

    @abstractmethod
    def changed(self, units: Float[Tensor, "B U *HW"]) -> Float[Tensor, "B U *HW"]:
        """The units of each row after its trial."""

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        assert len(self.trials) == len(acts), "assign says which trial each row undergoes"
        sae = self._sae[0]
        if sae is None:
            return self.changed(acts)
        with torch.autocast(acts.device.type, enabled=False):
            latents = sae.encode(acts)
            added = sae.decode(self.changed(latents)) - sae.decode(latents)
        return (acts.float() + added).to(acts.dtype)


class MapEdit(UnitEdit):
    """Some units of each row keep a part of their map, and have other values put in besides.

    Args:
        units: of each trial, G of them.
        keep: positions at which they stay as they are; elsewhere they become 0.
        put: what is added after that; None for nothing.
        sae: see `UnitEdit`.
    """

    units: Tensor
    keep: Tensor
    put: Tensor | None

    def __init__(
        self,
        units: Int64[Tensor, "T G"],
        keep: Bool[Tensor, "T H W"],
        put: Float[Tensor, "T G H W"] | None = None,
        sae: SAEBase | None = None,
    ) -> None:
        super().__init__(sae)
        self.register_buffer("units", units)
        self.register_buffer("keep", keep)
        self.register_buffer("put", put)

    @property
    def num_trials(self) -> int:
        """T."""
        return len(self.units)

    def changed(self, units: Float[Tensor, "B U H W"]) -> Float[Tensor, "B U H W"]:
        """The units of each row after its trial."""
        chosen = self.units[self.trials]
        rows = torch.arange(len(units), device=units.device)[:, None]
        new = units[rows, chosen] * self.keep[self.trials][:, None].to(units.dtype)
        if self.put is not None:
            new = new + self.put[self.trials].to(units.dtype)
        return units.index_put((rows, chosen), new)


class MatchedNoise(RowEdit):
    """Control of a row edit: noise as large, in the norm of the whole activation, as what the edit changes.

    Args:
        edit: the controlled edit.
        shape: of one activation of the tap.
        patterns: different patterns of noise, dealt to the trials in turn.
        seed: of the noise.
    """

    noise: Tensor

    def __init__(self, edit: RowEdit, shape: Sequence[int], patterns: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.edit = edit
        drawn = torch.randn(patterns, *shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("noise", drawn / _norm(drawn))

    @property
    def num_trials(self) -> int:
        """T."""
        return self.edit.num_trials

    def assign(self, trials: Int64[Tensor, " B"]) -> None:
        """Say which trial each row of the next batch undergoes."""
        super().assign(trials)
        self.edit.assign(trials)

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        change = self.edit(acts).float() - acts.float()
        return acts + (_norm(change) * self.noise[self.trials % len(self.noise)]).to(acts.dtype)


def _norm(acts: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *ones"]:
    return acts.flatten(1).norm(dim=1).view(-1, *[1] * (acts.ndim - 1))


def check_trials(
    network: TappedNetwork, edits: Sequence[Edit], trials: Sequence[int] | np.ndarray | None, episodes: int
) -> None:
    """Whether each episode is told its trial.

    Raises:
        ValueError: row edits without trials, for a network that remembers, or another number of trials than episodes;
            a trial that an edit does not have.
    """
    by_row = [edit for _, edit in edits if isinstance(edit, RowEdit)]
    if not by_row and trials is None:
        return
    if trials is None or len(trials) != episodes:
        given = "none" if trials is None else len(trials)
        raise ValueError(f"trials must say for each of {episodes} episodes which trial it undergoes, got {given}")
    if by_row and not isinstance(network, TappedAgent):
        raise ValueError(f"{network.architecture} remembers an episode: edit by row an agent that sees single frames")
    if by_row and not 0 <= min(trials) <= max(trials) < (least := min(edit.num_trials for edit in by_row)):
        raise ValueError(f"trials must lie from 0 to {least - 1}, the last that the edits have")
