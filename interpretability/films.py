"""Films: frames one after another, as an animated GIF that browsers, TensorBoard and READMEs show without a player."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from tensorboard.compat.proto.summary_pb2 import Summary

from interpretability.pictures import enlarge, font
from interpretability.replay import Replay
from networks.files import write_atomically

_TILE, _GAP, _LINE = 192, 10, 20
_PAPER, _INK, _FAINT = (255, 255, 255), (24, 26, 32), (104, 108, 118)
_PALETTE_FRAMES = 16  # that colours are chosen from
_PAUSE = 8  # frames for which a finished episode's last one stands before all begin anew


@dataclass(frozen=True)
class Film:
    """Frames of one size.

    Attributes:
        frames: in order.
        frames_per_second: shown; GIF counts in hundredths of a second.
    """

    frames: UInt8[np.ndarray, "T H W 3"]
    frames_per_second: float = 8.0

    def gif(self) -> bytes:
        """The film as an endless GIF of 256 colours, chosen once for all frames, none of them mixed by dots.

        One palette, so that a pixel which does not change is not stored again; chosen to cover colours rather than to
        follow their frequency, so that a small gem stays yellow.
        """
        some = self.frames[:: max(1, len(self.frames) // _PALETTE_FRAMES)]
        palette = Image.fromarray(np.concatenate(some)).quantize(256, Image.Quantize.MAXCOVERAGE)
        pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        file = io.BytesIO()
        duration = 10 * round(100 / self.frames_per_second)
        pictures[0].save(file, "gif", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
        return file.getvalue()

    def summary(self, tag: str) -> Summary:
        """What `SummaryWriter.add_video` writes, a GIF in the place of an image, without the encoder it asks for."""
        height, width, colours = self.frames.shape[1:]
        image = Summary.Image(height=height, width=width, colorspace=colours, encoded_image_string=self.gif())
        return Summary(value=[Summary.Value(tag=tag, image=image)])

    def save(self, path: Path) -> None:
        """Write the GIF whole or not at all; its folder is made."""
        write_atomically(path, lambda partial: partial.write_bytes(self.gif()))


def film_of_replays(replays: Sequence[Replay], captions: Sequence[str], max_steps: int = 200) -> Film:
    """Episodes side by side, enlarged, each over its caption and the step it is at; a shorter one stands at its end.

    Args:
        replays: at least one.
        captions: one line each, of about 25 characters.
        max_steps: the first so many of each are shown.
    """
    length = max(min(len(replay.frames), max_steps) for replay in replays) + _PAUSE
    size = (len(replays) * (_TILE + _GAP) + _GAP, _TILE + 2 * _GAP + 2 * _LINE)
    film = np.empty((length, size[1], size[0], 3), dtype=np.uint8)
    for time in range(length):
        paper = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(paper)
        for column, (replay, caption) in enumerate(zip(replays, captions, strict=True)):
            step = min(time, len(replay.frames) - 1, max_steps - 1)
            left = _GAP + column * (_TILE + _GAP)
            tile = enlarge(torch.from_numpy(replay.frames[step]), _TILE)
            paper.paste(Image.fromarray(tile.numpy()), (left, _GAP))
            draw.text((left, _GAP + _TILE + 3), caption, _INK, font(13))
            draw.text((left, _GAP + _TILE + 3 + _LINE), f"step {step + 1} of {len(replay.frames)}", _FAINT, font(13))
        film[time] = np.asarray(paper)
    return Film(film)
