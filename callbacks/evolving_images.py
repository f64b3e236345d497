"""A small grid of optimised images that is carried on while a network trains: a few steps of ascent at a time."""

import dataclasses
import time
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from callbacks.visualised import VisualisedSubject
from interpretability import OptimisationSettings, OptimisedImages, Unit, game_colours, optimise_images
from interpretability.pictures import Row, Tile, sheet
from networks import TappedAgent, autocast

_STARTS = 16  # random images that the first grid chooses from
_FRAMES = 256  # of a batch, in which an agent's most active channels are sought


class EvolvingImages:
    """Images of the same units again and again, each time going on from the last for a few steps.

    The units are those most active in the batch at which the first grid is made; whatever the network has learnt since
    then shows in what becomes of their images.

    Args:
        num_units: how many.
        settings: how images are made; `steps` are those of one time.
    """

    def __init__(self, num_units: int, settings: OptimisationSettings) -> None:
        self._num_units = num_units
        self._settings = dataclasses.replace(settings, starts=min(settings.starts, _STARTS))
        self._units: list[int] = []
        self._entries: Tensor | None = None
        self.start_clock()

    def start_clock(self) -> None:
        """Training begins, or goes on."""
        self._began = time.perf_counter()
        self._spent = 0.0

    def draw(self, subject: VisualisedSubject, batch: Any, step: int) -> UInt8[Tensor, "H W 3"]:
        """Carry the images on and lay them out.

        Args:
            subject: what is looked at, in eval mode.
            batch: of training, which the first grid's units are chosen on.
            step: of training.

        Raises:
            ValueError: a batch that says nothing of the units.
        """
        began = time.perf_counter()
        if not self._units:
            shares = _shares(subject, batch)
            self._units = shares.topk(min(self._num_units, len(shares))).indices.tolist()
        assert isinstance(subject.agent, TappedAgent)
        images = optimise_images(
            subject.agent,
            subject.tap,
            [Unit(unit) for unit in self._units],
            game_colours(subject.environment, subject.cache_dir),
            sae=subject.sae,
            begin=self._entries,
            settings=self._settings,
            precision=subject.precision,
        )
        self._entries = images.entries
        picture = self._lay_out(images, subject, step)
        self._spent += time.perf_counter() - began
        return picture

    @property
    def time_share(self) -> float:
        """Share of the time since training began that went into these images."""
        return self._spent / max(time.perf_counter() - self._began, 1e-9)

    def _lay_out(self, images: OptimisedImages, subject: VisualisedSubject, step: int) -> UInt8[Tensor, "H W 3"]:
        kind = "latent" if subject.sae is not None else "channel"
        tiles: list[Tile | None] = []
        for index, unit in enumerate(self._units):
            reached = f"{float(images.peak[index]):.3g}" if images.driven[index] else "not driven"
            tiles.append(Tile(images.images[index], f"{kind} {unit}: {reached}"))
        text = ["Images for the mean over the map, carried on while training. Below: the highest activation reached."]
        return sheet(
            f"{subject.tap} while training", text, [("optimised", len(tiles))], [Row(f"step {step}", [], tiles)]
        )

    def state_dict(self) -> dict[str, Any]:
        """Which units, and what their images have become."""
        return {"units": self._units, "entries": self._entries}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._units, self._entries = state_dict["units"], state_dict["entries"]


def _shares(subject: VisualisedSubject, batch: Any) -> Float[Tensor, " F"]:
    """Mean activation of each unit in a batch, of a latent times the length of its direction."""
    with torch.inference_mode(False), torch.no_grad():
        if subject.sae is not None:
            acts = subject.sae.encode(batch.activations[subject.tap]).float()
            return acts.movedim(1, -1).flatten(0, -2).mean(0) * subject.sae.decoder_norms()
        frames = getattr(batch, "frames", None)
        if frames is None:
            raise ValueError(
                f"FeatureVisualisation: a {type(batch).__name__} has no frames to choose channels on while training: "
                "set every_n_steps to null"
            )
        with autocast(subject.precision, frames.device):
            found = subject.agent.forward(frames[:_FRAMES], record=(subject.tap,), outputs=False)
        return found.activations[subject.tap].float().movedim(1, -1).flatten(0, -2).mean(0)
