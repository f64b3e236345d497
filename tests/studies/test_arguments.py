from pathlib import Path

import pytest
import torch

from studies.arguments import check_not_empty, check_writable
from studies.subject import choose_device


def test_a_cache_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    check_writable("cache_dir", str(tmp_path / "new/cache"))
    assert not any((tmp_path / "new/cache").iterdir())


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/cache"])
def test_a_cache_folder_that_cannot_be_written_into_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"cache_dir {tmp_path / folder} cannot be written into \(.+\): give another"):
        check_writable("cache_dir", str(tmp_path / folder))


def test_an_empty_list_is_named() -> None:
    check_not_empty({"taps": None, "kinds": ["mean"]})
    with pytest.raises(ValueError, match="taps is empty"):
        check_not_empty({"kinds": ["mean"], "taps": ()})


def test_a_device_is_one_that_is_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    for name in ("tpu", "mps", "cuda:x", ""):
        with pytest.raises(ValueError, match=f"device '{name}' .*: choose auto, cpu or cuda"):
            choose_device(name)
    with pytest.raises(ValueError, match="device 'cuda:99' is not there"):
        choose_device("cuda:99")
