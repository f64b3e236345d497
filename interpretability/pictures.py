"""Pictures for people: small frames enlarged without blur, labelled, laid out in rows."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from networks.files import write_atomically

TILE = 128
_GAP = 8
_MARGIN = 24
_LABEL = 178
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (24, 26, 32), (104, 108, 118), (226, 228, 233)


class Tile(NamedTuple):
    """A picture and the line of text below it."""

    image: UInt8[Tensor, "H W 3"]
    caption: str = ""


class Row(NamedTuple):
    """A heading, lines of text below it, and tiles beside them; None leaves a gap."""

    heading: str
    lines: Sequence[str]
    tiles: Sequence[Tile | None]


def enlarge(image: UInt8[Tensor, "H W 3"], size: int = TILE) -> UInt8[Tensor, "size size 3"]:
    """An image at `size` pixels a side, every pixel a block: nothing is blurred or made up."""
    resized = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.asarray(resized).copy())


def spotlight(
    frame: UInt8[Tensor, "H W 3"], heat: Float[Tensor, "h w"], full: float, dark: float = 0.5
) -> UInt8[Tensor, "H W 3"]:
    """A frame lit where a unit is active, so that its own colours stay readable.

    Args:
        frame: what was seen.
        heat: the unit's map; each position lights its share of the frame.
        full: activation that gives full light.
        dark: light where the unit is silent.
    """
    share = (heat.float().clamp(min=0) / max(full, 1e-12)).clamp(max=1)
    light = dark + (1 - dark) * share.sqrt()  # a root, as eyes see light
    height, width = frame.shape[:2]
    blocks = torch.nn.functional.interpolate(light[None, None], (height, width), mode="nearest")[0, 0]
    return (frame * blocks[..., None]).round().to(torch.uint8)


def outlined(
    image: UInt8[Tensor, "H W 3"], box: tuple[float, float, float, float], colour: tuple[int, int, int] = (255, 64, 129)
) -> UInt8[Tensor, "H W 3"]:
    """An enlarged image with a thin frame just around `box` (top, left, bottom, right in its pixels)."""
    picture = Image.fromarray(image.numpy())
    top, left, bottom, right = box
    corners = (max(left - 1, 0), max(top - 1, 0), min(right, image.shape[1] - 1), min(bottom, image.shape[0] - 1))
    ImageDraw.Draw(picture).rectangle(corners, outline=colour, width=2)
    return torch.from_numpy(np.asarray(picture).copy())


def sheet(
    title: str, lines: Sequence[str], columns: Sequence[tuple[str, int]], rows: Sequence[Row]
) -> UInt8[Tensor, "H W 3"]:
    """Rows of tiles under a title, on white paper.

    Args:
        title: the first line.
        lines: smaller lines below it; those that are too long are broken.
        columns: headings over the tiles, each with the number of tiles it spans.
        rows: from top to bottom.

    Raises:
        ValueError: a row of another number of tiles than the headings span.
    """
    count = sum(span for _, span in columns)
    for row in rows:
        if len(row.tiles) != count:
            raise ValueError(f"row {row.heading!r} has {len(row.tiles)} tiles, the headings span {count}")
    width = 2 * _MARGIN + _LABEL + count * (TILE + _GAP) - _GAP + (len(columns) - 1) * _GAP
    text = [part for line in lines for part in _broken(line, font(14), width - 2 * _MARGIN)]
    top = _MARGIN + 36 + 21 * len(text) + 14
    pitch = TILE + 22 + 16
    paper = Image.new("RGB", (width, top + 26 + pitch * len(rows) + _MARGIN - 10), _PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((_MARGIN, _MARGIN - 4), title, _INK, font(22, bold=True))
    for index, line in enumerate(text):
        draw.text((_MARGIN, _MARGIN + 34 + 21 * index), line, _FAINT, font(14))
    lefts: list[int] = []
    left = _MARGIN + _LABEL
    for heading, span in columns:
        draw.text((left, top), heading, _INK, font(14, bold=True))
        lefts += [left + index * (TILE + _GAP) for index in range(span)]
        left = lefts[-1] + TILE + 2 * _GAP
    for index, row in enumerate(rows):
        y = top + 26 + pitch * index
        draw.line((_MARGIN, y - 1, width - _MARGIN, y - 1), _RULE)
        draw.text((_MARGIN, y + 8), row.heading, _INK, font(17, bold=True))
        for number, line in enumerate(row.lines):
            draw.text((_MARGIN, y + 34 + 19 * number), line, _FAINT, font(13))
        for x, tile in zip(lefts, row.tiles, strict=True):
            if tile is not None:
                paper.paste(Image.fromarray(enlarge(tile.image).numpy()), (x, y + 8))
                draw.text((x, y + 8 + TILE + 3), tile.caption, _FAINT, font(12))
    return torch.from_numpy(np.asarray(paper).copy())


def save_png(path: Path, image: UInt8[Tensor, "H W 3"]) -> None:
    """Write a PNG file whole or not at all; its folder is made."""
    write_atomically(path, lambda partial: Image.fromarray(image.numpy()).save(partial, "png", optimize=True))


def save_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """Write a figure as a PNG file whole or not at all; its folder is made."""
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=dpi))


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu as matplotlib brings it: the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _broken(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A line broken between words so that it fits."""
    parts: list[str] = []
    for word in line.split(" "):
        longer = f"{parts[-1]} {word}" if parts else word
        if parts and font.getlength(longer) <= width:
            parts[-1] = longer
        else:
            parts.append(word)
    return parts
