"""An observed episode as a film: the frame, the policy and the maps of the shown units at every step."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from interpretability.episode_page import heat_levels, heat_palette, unit_name
from interpretability.films import Film
from interpretability.observed_episode import ACTION_ARROWS, ACTION_NAMES, COMPASS, LATENTS, Arm, ObservedEpisode
from interpretability.pictures import enlarge, font

_FRAME, _MAP, _CELL, _GAP, _MARGIN = 320, 98, 58, 10, 20
_PAPER, _INK, _FAINT, _TAKEN, _ORACLE = (255, 255, 255), (24, 26, 32), (104, 108, 118), (24, 26, 32), (15, 157, 88)
_ARM_COLOURS = ((37, 99, 201), (194, 87, 12))
_COMPASS = 3 * (_CELL + 4)


def episode_film(episode: ObservedEpisode, title: str, frames_per_second: float = 6.0) -> Film:
    """The film; the page of the same episode (`episode_page`) says more, and can be stopped."""
    rows = [row for source in episode.units for row in _rows(episode, source)]
    arms, widest = len(episode.arms), max((len(tiles[0]) for _, tiles, _ in rows), default=0)
    width = max(
        2 * _MARGIN + _FRAME + 20 + arms * (_COMPASS + 24),
        2 * _MARGIN + widest * (_MAP + _GAP),
    )
    top = _MARGIN + 34
    size = (width, top + _FRAME + 30 + len(rows) * (_MAP + 50) + _MARGIN)
    pictures = []
    for step in range(len(episode.replay.frames)):
        paper = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(paper)
        draw.text((_MARGIN, _MARGIN - 4), title, _INK, font(18, bold=True))
        frame = enlarge(torch.from_numpy(episode.replay.frames[step]), _FRAME)
        paper.paste(Image.fromarray(frame.numpy()), (_MARGIN, top))
        left = _MARGIN + _FRAME + 20
        for index, line in enumerate(_texts(episode, step)):
            draw.text((left, top + 21 * index), line, _INK if index == 0 else _FAINT, font(14, bold=index == 0))
        for index, arm in enumerate(episode.arms):
            place = (left + index * (_COMPASS + 24), top + 78)
            _draw_policy(draw, place, episode, arm, step, _ARM_COLOURS[index])
        for index, (heading, tiles, captions) in enumerate(rows):
            y = top + _FRAME + 22 + index * (_MAP + 50)
            draw.text((_MARGIN, y), heading, _INK, font(14, bold=True))
            for column, (tile, caption) in enumerate(zip(tiles[step], captions, strict=True)):
                x = _MARGIN + column * (_MAP + _GAP)
                picture = Image.fromarray(heat_palette()[tile])
                paper.paste(picture.resize((_MAP, _MAP), Image.Resampling.NEAREST), (x, y + 20))
                draw.text((x, y + 21 + _MAP), caption, _FAINT, font(10))
        pictures.append(np.asarray(paper))
    return Film(np.stack(pictures), frames_per_second)


def _texts(episode: ObservedEpisode, step: int) -> Iterator[str]:
    replay = episode.replay
    action = min(int(replay.actions[step]), len(ACTION_NAMES) - 1)
    yield f"step {step + 1} of {len(replay.frames)}: {ACTION_NAMES[action]}"
    if episode.labels is not None:
        yield f"shortest solution (dashed): {ACTION_NAMES[int(episode.labels.main_action[step])]}"
    divergence = episode.divergence()
    if divergence is not None:
        yield f"KL(untouched || edited) {divergence[step]:.3f} nats"


def _draw_policy(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    episode: ObservedEpisode,
    arm: Arm,
    step: int,
    colour: tuple[int, int, int],
) -> None:
    """Nine cells around the player, as dark as their move is likely; framed the move taken, dashed the oracle's."""
    left, top = place
    name = "policy" if len(episode.arms) == 1 else arm.name
    draw.text((left, top), f"{name}, value {arm.values[step]:.2f}", colour, font(14, bold=True))
    for index, action in enumerate(COMPASS):
        share = float(arm.probabilities[step, action])
        x, y = left + index % 3 * (_CELL + 4), top + 24 + index // 3 * (_CELL + 4)
        strength = 0.04 + 0.9 * share
        fill = tuple(round(255 + (part - 255) * strength) for part in colour)
        taken = action == episode.replay.actions[step]
        draw.rectangle((x, y, x + _CELL, y + _CELL), fill, _TAKEN if taken else fill, 3)
        ink = _PAPER if share > 0.6 else _INK
        draw.text((x + _CELL / 2, y + 20), ACTION_ARROWS[action], ink, font(18), anchor="mm")
        draw.text((x + _CELL / 2, y + 42), f"{100 * share:.0f} %", ink, font(12), anchor="mm")
        if episode.labels is not None and action == episode.labels.main_action[step]:
            for offset in range(5, _CELL - 5, 9):
                for start in ((x + offset, y + 5), (x + offset, y + _CELL - 5)):
                    draw.line((*start, start[0] + 4, start[1]), _ORACLE, 2)
                for start in ((x + 5, y + offset), (x + _CELL - 5, y + offset)):
                    draw.line((*start, start[0], start[1] + 4), _ORACLE, 2)


def _rows(episode: ObservedEpisode, source: str) -> Iterator[tuple[str, np.ndarray, Sequence[str]]]:
    """Heading, levels of heat [T n H W] and captions: one row, or one an arm where an edit makes a difference."""
    limits = episode.limits(source)
    captions = [
        f"{unit_name(source, unit)}, to {high:.2g}"
        for unit, (_, high) in zip(episode.units[source], limits, strict=True)
    ]
    name = "latents" if source == LATENTS else source
    clean, *others = (heat_levels(arm.maps[source], limits) for arm in episode.arms)
    changed = [levels for levels in others if not np.array_equal(levels, clean)]
    yield f"{name}, untouched agent" if changed else name, clean, captions
    for levels in changed:
        yield f"{name}, edited agent", levels, captions
