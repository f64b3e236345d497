"""What does something in a network want to see? Images optimised for units, differences, directions and logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from datamodules import ActivationDataModule
from environments import EnvironmentSettings
from environments.heist import STAY
from environments.procgen import DistributionMode
from interpretability.image_objectives import LayerDirection, Objective, Response, Unit, difference
from interpretability.observed_episode import ACTION_NAMES, COMPASS
from interpretability.optimised_images import Inside, OptimisationSettings, OptimisedImages, optimise_images
from interpretability.pictures import Row, Tile, sheet
from interpretability.replay import replay
from interpretability.signed_taps import falls_below_zero
from interpretability.stored_colours import game_colours
from networks import DEFAULT_PRECISION, Precision, load_readout
from studies.arguments import check_at_least_one, check_not_empty
from studies.report import Report, Study, Table
from studies.subject import choose_device, load_subject

_SETTINGS = OptimisationSettings()
_FRAMES = 256  # in one pass


@dataclass(frozen=True)
class Wanted:
    """One thing to drive: a unit, a unit without another, or what a probe reads.

    Attributes:
        unit: channel, latent, action (tap `logits`); of the tap `value` 0.
        sign: -1 drives the unit down instead, on a tap that falls below 0; values are then of how far below 0 it is.
        minus: a unit that is to be silent meanwhile.
        probe: path of a probe's weights (pooled or position form) instead of a unit.
        target: which of its targets.
        answer: which class or number of the target.
        cosine_power: of a probe's direction: how much the angle to it matters.
        position: (y, x) on the tap's map; null for the mean over the map.
    """

    unit: int | None = None
    minus: int | None = None
    probe: str | None = None
    target: str | None = None
    answer: str | None = None
    cosine_power: float = 0.0
    position: tuple[int, int] | None = None
    sign: Literal[1, -1] = 1

    def __post_init__(self) -> None:
        if (self.unit is None) == (self.probe is None):
            raise ValueError(f"{self}: give either unit, or probe with target and answer")
        if self.probe is not None and (self.target is None or self.answer is None or self.minus is not None):
            raise ValueError(f"{self}: a probe needs target and answer, and has no minus")
        if self.unit is not None and (self.target is not None or self.answer is not None or self.cosine_power != 0):
            raise ValueError(f"{self}: target, answer and cosine_power belong to a probe")
        if self.sign != 1 and (self.sign != -1 or self.unit is None or self.minus is not None):
            raise ValueError(f"{self}: sign is 1, or -1 of a unit alone")

    @property
    def name(self) -> str:
        """For people."""
        what = f"{self.target}: {self.answer}" if self.unit is None else str(self.unit)
        if self.sign < 0:
            what += ", below 0"
        if self.minus is not None:
            what += f" without {self.minus}"
        return what if self.position is None else f"{what} at {self.position[0]}, {self.position[1]}"


@dataclass(frozen=True)
class Patch:
    """Where in a frame of the game images are optimised; the rest stays as it is.

    Attributes:
        level: whose first frame.
        box: top, left, bottom, right in pixels; the last two are outside.
    """

    level: int
    box: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        top, left, bottom, right = self.box
        if not (0 <= top < bottom <= 64 and 0 <= left < right <= 64):
            raise ValueError(f"box {self.box}: top, left, bottom, right in pixels, within 0 to 64")


class FeatureImages(Study):
    """Optimises images for whatever can be driven in an agent: units, differences of two, probe directions, logits.

    Writes the sheet `figures/images.png`, a row each with the highest value reached beside the highest that frames of
    the game reach, and the table `images`. Summary: `images/count`, `images/driven` (share driven more than noise
    does), `images/reaches` (share that reaches at least the highest value in the game).

    Args:
        agent: path of the agent's weights.
        sae: path of an autoencoder whose latents the units are; null for the tap's own.
        tap: null for the autoencoder's. `logits` and `value` are taps too.
        wanted: what to drive; null for every unit, over its whole map, and where the tap falls below 0 every unit down
            too.
        images: of each; keep them apart by `settings.diversity`.
        inside: optimise only a patch of a frame of the game.
        game: what is played.
        distribution_mode: its difficulty.
        num_frames: validation frames, for the highest value in the game.
        settings: how images are made.
        precision: in which the agent runs.
        cache_dir: folder of activation caches.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap or unit that does not exist, a unit driven down where
            none falls below 0, a number below 1.
    """

    def __init__(
        self,
        agent: str,
        sae: str | None = None,
        tap: str | None = None,
        wanted: list[Wanted] | None = None,
        images: int = 1,
        inside: Patch | None = None,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        num_frames: int = 4_096,
        settings: OptimisationSettings = _SETTINGS,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/activations",
        device: str = "auto",
    ) -> None:
        self.device = choose_device(device)
        self.agent, self.tap, self.sae = load_subject(agent, sae, tap, self.device)
        check_at_least_one({"images": images, "num_frames": num_frames})
        check_not_empty({"wanted": wanted})
        if images > 1 and settings.diversity == 0:
            raise ValueError(f"{images} images of each would come out alike: set settings.diversity above 0, 3 say")
        self.images, self.settings, self.num_frames = images, settings, num_frames
        self.precision: Precision = precision
        self.environment = EnvironmentSettings(game, distribution_mode)
        units = (self.agent.taps[self.tap] or (1,))[0] if self.sae is None else self.sae.num_latents
        signed = falls_below_zero(self.agent, self.tap, self.sae)
        signs: tuple[Literal[1, -1], ...] = (1, -1) if signed else (1,)
        every = [Wanted(unit, sign=sign) for unit in range(units) for sign in signs]
        self.wanted = every if wanted is None else wanted
        if not signed and any(each.sign < 0 for each in self.wanted):
            raise ValueError(f"no unit of {self.tap} falls below 0: take sign out, or choose a tap before its ReLU")
        self.objectives = [self._objective(each, units) for each in self.wanted]
        self.response = Response(self.agent, self.tap, self.objectives, self.sae, precision)
        self.inside = inside
        self.data = ActivationDataModule(
            agent,
            [self.tap],
            environment=self.environment,
            validation_frames=num_frames,
            labels=False,
            precision=precision,
            cache_dir=cache_dir,
        )
        self.data.device = self.device

    def _objective(self, wanted: Wanted, units: int) -> Objective:
        if wanted.unit is not None:
            if wanted.minus is None:
                return Unit(wanted.unit, wanted.position, wanted.sign)
            return difference(wanted.unit, wanted.minus, units, wanted.position)
        assert wanted.probe is not None
        assert wanted.target is not None
        assert wanted.answer is not None
        if self.sae is not None:
            raise ValueError("a probe reads the tap itself: take sae out, or the probe")
        readout = load_readout(wanted.probe, self.agent)
        if readout.tap != self.tap:
            raise ValueError(f"the probe {wanted.probe} reads {readout.tap}, not {self.tap}: set tap to {readout.tap}")
        vector = readout.direction(wanted.target, wanted.answer).vector
        if vector.ndim != 1 and len(self.agent.taps[self.tap]) > 1:
            raise ValueError(f"the probe {wanted.probe} reads a whole map: take one of form pooled or position")
        return LayerDirection(vector.detach().flatten(), wanted.position, wanted.cosine_power)

    def run(self) -> Report:
        """Look at frames, optimise, draw."""
        highest = self._look()
        objectives = [objective for objective in self.objectives for _ in range(self.images)]
        found = optimise_images(
            self.agent,
            self.tap,
            objectives,
            game_colours(self.environment, self.data.cache_dir),
            sae=self.sae,
            inside=self._patch(),
            settings=self.settings,
            precision=self.precision,
        )
        reached = _reached(found, self.objectives, self.images)
        table: list[list[Any]] = [
            [each.name, reached[index], highest[index], bool(found.driven[index * self.images])]
            for index, each in enumerate(self.wanted)
        ]
        summary = {
            "images/count": float(len(self.wanted)),
            "images/driven": float(found.driven.float().mean()),
            "images/reaches": sum(a >= b for a, b in zip(reached, highest, strict=True)) / len(highest),
        }
        columns = ["wanted", "highest in the image", "highest in the game", "driven"]
        return Report(
            summary,
            {"images": Table(columns, [[str(c) if isinstance(c, bool) else c for c in row] for row in table])},
            figures={"images": self._draw(found, reached, highest)},
        )

    def _look(self) -> list[float]:
        """How far frames of the game drive each objective at any position (or at its own)."""
        highest = torch.full((len(self.objectives),), -torch.inf)
        loader = tqdm(self.data.val_dataloader(), desc="look through frames", unit="batch", leave=False)
        with torch.no_grad():
            for batch in loader:
                assert batch.frames is not None
                for frames in batch.frames.split(_FRAMES):
                    found = self.response.highest(frames.to(self.device).float() / 255)
                    highest = torch.maximum(highest, found.cpu())
        self.data.teardown("validate")
        return highest.tolist()

    def _patch(self) -> Inside | None:
        if self.inside is None:
            return None
        frames = replay(self.inside.level, [STAY], self.environment).frames
        top, left, bottom, right = self.inside.box
        mask = torch.zeros(64, 64)
        mask[top:bottom, left:right] = 1
        return Inside(torch.from_numpy(frames[0]), mask)

    def _draw(
        self, found: OptimisedImages, reached: Sequence[float], highest: Sequence[float]
    ) -> UInt8[Tensor, "H W 3"]:
        kind = "latent" if self.sae is not None else "channel" if len(self.agent.taps[self.tap]) == 3 else "unit"
        rows = []
        for index, wanted in enumerate(self.wanted):
            own = range(index * self.images, (index + 1) * self.images)
            tiles = [Tile(found.images[row], "" if found.driven[row] else "could not be driven") for row in own]
            named = self.tap == "logits" and self.environment.game == "heist" and wanted.minus is None
            action = wanted.unit if named else None
            lines = [] if action is None or action >= len(COMPASS) else [f"action: {ACTION_NAMES[action]}"]
            lines += [f"highest {reached[index]:.3g}", f"in the game {highest[index]:.3g}"]
            rows.append(Row(wanted.name if wanted.unit is None else f"{kind} {wanted.name}", lines, tiles))
        text = [
            f"{self.settings.parametrisation} images, {self.settings.steps} steps; the highest value at any "
            f"position of the image, and of {self.num_frames} frames of the game."
        ]
        return sheet(f"{self.tap}: what drives it", text, [("optimised", self.images)], rows)


def _reached(found: OptimisedImages, objectives: Sequence[Objective], images: int) -> list[float]:
    """The highest value in the best of each objective's images: at any position, or at its own."""
    values = [
        float(found.peak[row] if objectives[row // images].position is None else found.achieved[row])
        for row in range(len(found.peak))
    ]
    return [max(values[start : start + images]) for start in range(0, len(values), images)]
