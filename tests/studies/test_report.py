import csv
import io
import json

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from interpretability.films import Film
from studies import Report, Table


def test_writes_and_shows(tmp_path):
    report = Report(
        {"agent/return": 9.5, "agent/undefined": float("nan")},
        {"keys": Table(["keys", "return"], [[0, 10.0], [1, 9.12345]]), "all": Table(["level"], [[7]], printed=False)},
        {"curve": Figure()},
    )
    report.write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"agent/return": 9.5, "agent/undefined": None}
    with (tmp_path / "tables/keys.csv").open() as file:
        assert list(csv.reader(file)) == [["keys", "return"], ["0", "10.0"], ["1", "9.12345"]]
    assert (tmp_path / "tables/all.csv").exists()
    assert json.loads((tmp_path / "tables/keys.json").read_text()) == [
        {"keys": 0, "return": 10.0},
        {"keys": 1, "return": 9.12345},
    ]
    assert (tmp_path / "figures/curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "summary.json", "tables"]
    screen = io.StringIO()
    report.show(Console(file=screen, width=60), tmp_path)
    assert "9.123" in screen.getvalue()
    assert "level" not in screen.getvalue()
    assert str(tmp_path / "figures" / "curve.png") in screen.getvalue()


def test_records_tell_bounds_apart_and_hold_what_json_can():
    columns = ["arm", "low", "high", "return", "low", "high"]
    rows = [["none", 0.5, np.float32(1), np.int64(3), float("nan"), float("inf")], ["edit", "", 1, 2, 3, 4]]
    expected = {"arm": "none", "arm low": 0.5, "arm high": 1.0, "return": 3, "return low": None, "return high": None}
    first, second = json.loads(json.dumps(Table(columns, rows).records(), allow_nan=False))
    assert first == expected
    assert list(second.values()) == rows[1]
    (twice,) = Table(["a", "a"], [[1, 2]]).records()
    assert list(twice.values()) == [1, 2]


def test_films_and_pages_lie_in_folders_of_their_own(tmp_path):
    report = Report({}, films={"play": Film(np.zeros((2, 8, 8, 3), dtype=np.uint8))}, pages={"look": "<p>ü</p>"})
    report.write(tmp_path)
    assert (tmp_path / "films/play.gif").read_bytes().startswith(b"GIF")
    assert (tmp_path / "pages/look.html").read_text(encoding="utf-8") == "<p>ü</p>"
    screen = io.StringIO()
    report.show(Console(file=screen, width=60), tmp_path)
    assert str(tmp_path / "pages/look.html") in screen.getvalue()
    assert str(tmp_path / "films/play.gif") in screen.getvalue()


def test_a_table_that_is_too_wide_is_turned_or_cut_and_never_abbreviated(tmp_path):
    columns = ["name", *(f"measurement{number}" for number in range(9))]
    few = Report({}, {"few": Table(columns, [["first", *range(9)]])})
    many = Report({}, {"many": Table(columns, [[f"entry{row}", *range(9)] for row in range(30)])})

    def shown(report):
        screen = io.StringIO()
        report.show(Console(file=screen, width=60), tmp_path)
        return screen.getvalue()

    assert "…" not in shown(few) + shown(many)
    assert all(name in shown(few) for name in columns)
    assert "few.csv" not in shown(few)
    assert "measurement0" in shown(many)
    assert "measurement8" not in shown(many)
    assert "entry29" in shown(many)
    assert f"{tmp_path / 'tables' / 'many'}.csv" in shown(many)
