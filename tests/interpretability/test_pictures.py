import pytest
import torch
from PIL import Image
from torch import Tensor

from interpretability.pictures import TILE, Row, Tile, enlarge, outlined, save_png, sheet, spotlight


def frame(seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_pixels_become_blocks() -> None:
    assert enlarge(frame(), 128)[::2, 1::2].equal(frame())


def test_light_falls_where_the_unit_is_active() -> None:
    heat = torch.zeros(8, 8)
    heat[2, 5], heat[0, 0] = 4.0, 1.0
    lit = spotlight(torch.full((64, 64, 3), 200, dtype=torch.uint8), heat, full=4.0, dark=0.5)
    assert (lit[16:24, 40:48] == 200).all()
    assert (lit[:8, :8] == 150).all()
    assert (lit[8:16] == 100).all()
    assert spotlight(frame(), heat, full=4.0, dark=1.0).equal(frame())


def test_the_box_does_not_cover_what_it_shows() -> None:
    image = enlarge(frame(), 128)
    boxed = outlined(image, (32, 48, 48, 64), (1, 2, 3))
    assert boxed[33:47, 49:63].equal(image[33:47, 49:63])
    assert boxed[31, 50].tolist() == [1, 2, 3]
    assert boxed[:30].equal(image[:30])
    assert outlined(image, (0, 0, 16, 16), (1, 2, 3))[0, 0].tolist() == [1, 2, 3]  # at the edge it stays inside


def test_sheets_hold_every_tile_and_leave_gaps() -> None:
    rows = [
        Row("latent 1", ["active at 3 %"], [Tile(frame(1), "a"), Tile(frame(2), "b"), None]),
        Row("latent 2", [], [Tile(frame(3)), Tile(frame(4)), Tile(frame(5))]),
    ]
    picture = sheet("Title", ["a line that is far too long for one row " * 6], [("one", 1), ("others", 2)], rows)
    for seed in range(1, 6):
        tile = enlarge(frame(seed))
        places = (picture[:-TILE, :-TILE] == tile[0, 0]).all(-1).nonzero().tolist()
        assert any(picture[y : y + TILE, x : x + TILE].equal(tile) for y, x in places)
    margin = picture[:, -10:]
    assert (margin == 255).all()  # nothing runs over the edge
    with pytest.raises(ValueError, match="row 'latent 2' has 3 tiles, the headings span 2"):
        sheet("Title", [], [("one", 2)], rows[1:])


def test_files_are_whole_or_absent(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figures" / "picture.png"
    save_png(path, frame())
    assert torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).equal(frame().flatten())

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(path, frame(1))
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
