import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from interpretability.films import Film, film_of_replays
from interpretability.replay import Replay


def decode(gif: bytes) -> list[tuple[int, np.ndarray]]:
    """(milliseconds, picture) one after another, by a decoder that knows nothing of how it was made."""
    picture = Image.open(io.BytesIO(gif))
    shown = []
    for number in range(picture.n_frames):
        picture.seek(number)
        shown.append((picture.info["duration"], np.asarray(picture.convert("RGB")).astype(int)))
    return shown


def test_a_gif_shows_the_frames_at_their_times():
    generator = np.random.default_rng(0)
    frames = np.full((5, 32, 40, 3), 90, dtype=np.uint8)
    frames[:, :16] = generator.integers(0, 256, (5, 1, 1, 3))
    frames[2:, 8, 9] = (255, 216, 60)  # one yellow dot keeps its colour
    frames[4] = frames[3]  # stands for two
    shown = decode(Film(frames, 8).gif())
    assert sum(duration for duration, _ in shown) in (600, 650)
    at = np.repeat(range(len(shown)), [round(duration / 120) for duration, _ in shown])
    for expected, number in zip(frames, at, strict=True):
        assert np.abs(shown[number][1] - expected).max() <= 16


def test_a_film_is_saved_where_told(tmp_path):
    path = tmp_path / "films/some.gif"
    Film(np.zeros((2, 4, 4, 3), dtype=np.uint8)).save(path)
    assert path.read_bytes().startswith(b"GIF89a")


def test_a_film_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    def fail(path, content):
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError("the disk is full")

    path = tmp_path / "some.gif"
    path.write_bytes(b"whole")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk is full"):
        Film(np.zeros((2, 4, 4, 3), dtype=np.uint8)).save(path)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def some_replay(level: int, steps: int) -> Replay:
    frames = torch.arange(steps, dtype=torch.uint8)[:, None, None, None].expand(-1, 64, 64, 3) * 20
    return Replay(level, np.zeros(steps, dtype=int), frames.numpy(), [b""] * steps, np.zeros(steps), True)


def test_replays_run_side_by_side_and_the_shorter_waits():
    film = film_of_replays([some_replay(1, 3), some_replay(2, 12)], ["short", "long"], max_steps=10)
    short, long = film.frames[:, 100, 100, 0], film.frames[:, 100, 310, 0]
    assert short[:5].tolist() == [0, 20, 40, 40, 40]
    assert long[:12].tolist() == [*range(0, 200, 20), 180, 180]
