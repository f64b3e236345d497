"""The one edit that a study's arguments ask for."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from environments import EnvironmentSettings
from interpretability.ablations import ZeroAblation, mean_ablation
from interpretability.splice import MEAN_LEVELS, MEAN_STEPS
from networks import Edit, Precision, SAEBase, TappedNetwork, load_edit, load_sae


@dataclass(frozen=True)
class EditChoice:
    """At most one of an autoencoder, an ablation, a saved edit and any module, checked against each other.

    Attributes:
        sae: path of an autoencoder that replaces its own tap.
        ablation: replaces `tap` by zeros, or by its mean over untouched sampled play.
        edit: any module, put in at `tap`.
        tap: where `ablation` or `edit` go.
        allow_other_agent: take an autoencoder that was trained on another agent.
        saved: path of an edit that `studies.Retargeting` found, on this agent or another; it knows its tap.

    Raises:
        ValueError: more than one of them, one without a tap, or a tap without one.
    """

    sae: str | None = None
    ablation: Literal["mean", "zero"] | None = None
    edit: nn.Module | None = None
    tap: str | None = None
    allow_other_agent: bool = False
    saved: str | None = None

    def __post_init__(self) -> None:
        if self._given > 1:
            raise ValueError("sae, ablation, edit and saved_edit exclude each other: give one of them")
        needs_tap = self.ablation is not None or self.edit is not None
        if needs_tap and self.tap is None:
            raise ValueError("ablation and edit need a tap: name the one that they replace")
        if self.tap is not None and not needs_tap:
            raise ValueError(
                f"tap {self.tap!r} is given without an ablation or an edit to put in there "
                "(an sae and a saved_edit have their own)"
            )

    def __bool__(self) -> bool:
        """Whether there is an edit."""
        return self._given > 0

    @property
    def _given(self) -> int:
        return sum(option is not None for option in (self.sae, self.ablation, self.edit, self.saved))

    def load(self, agent: TappedNetwork, device: torch.device | str) -> list[Edit]:
        """What can be put in at once: nothing as yet for a mean, which has to be played for (`resolve`).

        Raises:
            ValueError: a file that is missing or belongs to another agent, or a tap that the agent does not have.
        """
        if self.sae is not None:
            autoencoder: SAEBase = load_sae(self.sae, agent, self.allow_other_agent).to(device)
            return [(autoencoder.tap, autoencoder)]
        if self.saved is not None:
            _, tap, edit = load_edit(self.saved, agent)
            return [(tap, edit.to(device))]
        if self.tap is None:
            return []
        agent.check_taps([self.tap])
        if self.ablation == "mean":
            return []
        return [(self.tap, (ZeroAblation() if self.edit is None else self.edit).to(device))]

    def resolve(
        self,
        loaded: list[Edit],
        agent: TappedNetwork,
        levels: range,
        settings: EnvironmentSettings,
        precision: Precision,
        seed: int = 0,
    ) -> list[Edit]:
        """The edits to play with: those that `load` gave, or the mean over up to 64 of the levels, 200 steps each."""
        if self.ablation != "mean":
            return loaded
        assert self.tap is not None
        mean = mean_ablation(
            agent,
            self.tap,
            levels[:MEAN_LEVELS],
            settings=settings,
            seed=seed,
            max_steps=MEAN_STEPS,
            precision=precision,
            progress=f"mean of {self.tap}",
        )
        return [(self.tap, mean)]
