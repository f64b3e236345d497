from pathlib import Path

import pytest

from networks.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    for text in ("one", "two"):
        write_atomically(path, lambda partial, text=text: partial.write_text(text))
    assert [path.read_text() for path in path.parent.iterdir()] == ["two"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("during", ["write", "flush"])
def test_a_full_disk_or_an_interruption_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, during: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")

    def fail(*_: object) -> None:
        raise error

    def write(partial: Path) -> None:
        partial.write_text("tw")
        if during == "write":
            fail()

    if during == "flush":
        monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]
