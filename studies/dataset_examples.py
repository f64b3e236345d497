"""Which frames of the game drive each unit most? Exact, out of as many as are streamed, in constant memory."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from datamodules.recorder import PlaySettings, Recorder
from environments import VALIDATION_LEVELS, EnvironmentSettings
from environments.procgen import DistributionMode
from interpretability.dataset_examples import DatasetExamples
from interpretability.feature_sheet import example_row, example_text, patch_field
from interpretability.pictures import sheet
from interpretability.report_page import Section, report_page
from interpretability.signed_taps import falls_below_zero
from networks import DEFAULT_PRECISION, Precision, hash_tensors
from networks.weights import read_weights, save_tensors
from studies.arguments import check_at_least_one, check_writable
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device, load_subject

_ROWS = 512  # of a block that are looked at together
_UNITS = 16  # on a sheet
_PLAY = PlaySettings()


class StreamedExamples(Study):
    """Plays validation levels and keeps, of every unit, the frames in which it is most active.

    Nothing is stored but the examples: memory does not grow with the number of frames. They are exactly those that a
    sort of all frames would give. Every `save_every` frames they are written to `cache_dir`; the same command goes on
    from there, and with more frames too.

    On a tap that falls below 0 every channel is two units: `7`, and `7, below 0`, whose examples are the frames in
    which the channel is lowest (its activation turned over is what counts as highest).

    Writes sheets of 16 units each, the units that are active in most frames' positions first, `pages/examples.html`
    with all of them, and the table `examples`: of each example its unit, rank, highest activation, level, the place in
    the stream, and the cell of the tap's map where it was highest. Summary: `examples/units`, `examples/frames`,
    `examples/levels_shown` (different ones among all examples), `examples/never_active` (share of units).

    Args:
        agent: path of the agent's weights.
        sae: path of an autoencoder whose latents the units are; null for the tap's own.
        tap: null for the autoencoder's.
        units: which are drawn; null for all. All are kept.
        num_frames: how many frames stream by.
        per_unit: examples of each unit.
        one_per_level: at most one example of a level.
        diversity: weight of an example's likeness to those before it, see `interpretability.DatasetExamples`.
        game: what is played.
        distribution_mode: its difficulty.
        play: how; a block of it is the least that is played.
        save_every: frames between two savings.
        precision: in which the agent runs.
        cache_dir: folder in which examples are kept.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a unit or tap that does not exist, a number below 1.
    """

    def __init__(
        self,
        agent: str,
        sae: str | None = None,
        tap: str | None = None,
        units: list[int] | None = None,
        num_frames: int = 1_000_000,
        per_unit: int = 8,
        one_per_level: bool = True,
        diversity: float = 0.0,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        play: PlaySettings = _PLAY,
        save_every: int = 100_000,
        precision: Precision = DEFAULT_PRECISION,
        cache_dir: str = ".cache/examples",
        device: str = "auto",
    ) -> None:
        check_at_least_one({"num_frames": num_frames, "save_every": save_every})
        self.device = choose_device(device)
        self.agent, self.tap, self.sae = load_subject(agent, sae, tap, self.device)
        if len(self.agent.taps[self.tap]) not in (1, 3):
            raise ValueError(f"{self.tap} has no channels: choose another tap")
        self._patch = patch_field(self.agent, self.tap, self.sae)
        count = self.agent.taps[self.tap][0] if self.sae is None else self.sae.num_latents
        chosen = list(range(count)) if units is None else units
        if not chosen or not set(chosen) <= set(range(count)):
            raise ValueError(f"units {chosen}: choose some of 0 to {count - 1}")
        self.signed = falls_below_zero(self.agent, self.tap, self.sae)
        self._count = count
        self.units = [*chosen, *(count + unit for unit in chosen if self.signed)]  # the negatives come last
        self.num_frames, self.save_every = num_frames, save_every
        self.examples = DatasetExamples(per_unit, one_per_level, diversity=diversity)
        environment = EnvironmentSettings(
            game, distribution_mode, start_level=VALIDATION_LEVELS.start, num_levels=len(VALIDATION_LEVELS)
        )
        self.recorder = Recorder(
            self.agent, environment, [self.tap], frames=True, precision=precision, play=play, device=self.device
        )
        known = self.recorder.description() | {
            "sae": None if self.sae is None else hash_tensors(self.sae.state_dict()),
            "examples": [per_unit, one_per_level, diversity, *(["both sides"] if self.signed else [])],
        }
        name = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self._path, self._keeps = Path(cache_dir) / f"{name}.safetensors", True
        check_writable("cache_dir", cache_dir)

    def run(self) -> Report:
        """Stream, keep, draw."""
        self._resume()
        saved = self.examples.num_frames
        with tqdm(total=self.num_frames, initial=saved, desc="stream", unit="frame") as bar:
            for frames, acts, levels in self._stream():
                self.examples.update(frames, acts, levels)
                bar.update(len(frames))
                block = self.recorder.frames_per_block
                # only whole blocks: the rest of one is not known to whoever goes on
                if self.examples.num_frames % block == 0 and self.examples.num_frames - saved >= self.save_every:
                    self._save()
                    saved = self.examples.num_frames
        if self.examples.num_frames % self.recorder.frames_per_block == 0 and self.examples.num_frames > saved:
            self._save()
        self.recorder.close()
        rows = self._rows()
        order = self.examples.frequency[self.units].argsort(descending=True, stable=True).tolist()
        sheets = self._sheets([self.units[place] for place in order])
        maximum = self.examples.maximum
        summary = {
            "examples/units": float(len(self.units)),
            "examples/frames": float(self.examples.num_frames),
            "examples/levels_shown": float(len({row[3] for row in rows})),
            "examples/never_active": float((maximum[self.units] <= 0).float().mean()),
        }
        columns = ["unit", "rank", "highest", "level", "place", "y", "x"]
        title = f"What drives the units of {self.tap} most"
        sections = [Section(name.replace("_", " ").capitalize(), (), [(name, sheets[name])]) for name in sheets]
        page = report_page(title, self._text(), sections)
        return Report(summary, {"examples": Table(columns, rows, printed=False)}, sheets, pages={"examples": page})

    def _stream(self) -> Iterator[tuple[UInt8[Tensor, "B 64 64 3"], Tensor, Tensor]]:
        """Frames, the units' activations and levels, from the first that is not known yet."""
        size = self.recorder.frames_per_block
        while (left := self.num_frames - self.examples.num_frames) > 0:
            block = self.recorder.block(self.examples.num_frames // size, min(size, left))
            for rows in torch.arange(len(block["levels"])).split(_ROWS):
                acts = block[f"activations/{self.tap}"][rows].to(self.device).movedim(-1, 1).float()
                with torch.inference_mode():
                    units = acts if self.sae is None else self.sae.encode(acts)
                both = torch.cat([units, -units], 1) if self.signed else units
                yield block["frames"][rows], both, block["levels"][rows]

    def _resume(self) -> None:
        """Take up what was kept, unless it is of more frames than are asked for: that is left as it is."""
        if self._path.exists():
            tensors, known = read_weights(self._path)
            self._keeps = known["frames"] <= self.num_frames
            if self._keeps:
                self.examples.load_state(tensors)

    def _save(self) -> None:
        if self._keeps:
            save_tensors(self._path, self.examples.state(), {"frames": self.examples.num_frames})

    def _rows(self) -> list[list[Cell]]:
        return [
            [self._name(unit), rank, example.score, example.level, example.place, *example.peak]
            for unit in self.units
            for rank, example in enumerate(self.examples.of_unit(unit), 1)
        ]

    def _name(self, unit: int) -> str | int:
        return unit if unit < self._count else f"{unit - self._count}, below 0"

    def _text(self) -> list[str]:
        source = f"{'channels' if self.sae is None else 'latents of an autoencoder'} of {self.tap}"
        lit = self._patch is None and len(self.agent.taps[self.tap]) == 3
        shown = example_text(self.examples, lit)
        sides = " A unit below 0 is the channel turned over." if self.signed else ""
        return [f"Units are {source}; those that are active most often come first.{sides}", shown]

    def _sheets(self, units: Sequence[int]) -> dict[str, UInt8[Tensor, "H W 3"]]:
        patch = self._patch
        kind = "channel" if self.sae is None else "latent"
        seen = "frames" if patch is None else f"patches of {patch.size[0]} x {patch.size[1]} pixels"
        columns = [(f"the best {seen}", self.examples.per_unit)]
        sheets = {}
        for number, start in enumerate(range(0, len(units), _UNITS), 1):
            rows = [
                example_row(self.examples, unit, f"{kind} {self._name(unit)}", patch)
                for unit in units[start : start + _UNITS]
            ]
            sheets[f"examples_{number}"] = sheet(f"{self.tap}: what drives its units", self._text(), columns, rows)
        return sheets
