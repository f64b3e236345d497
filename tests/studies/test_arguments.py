import inspect
from pathlib import Path

import pytest
import torch

import studies
from studies import Patching, Plans, Retargeting, SAEBaselines, SpatialIntervention, Steering, Study
from studies.arguments import check_files, check_not_empty, check_writable
from studies.subject import choose_device

STUDIES = [each for each in vars(studies).values() if isinstance(each, type) and issubclass(each, Study)]
REQUIRED = {"agents": ["nowhere"], "level": 0}
"""What studies cannot do without, where it is no file's name."""


def refused(study: type[Study], said: str, **given: object) -> None:
    """A study says what is wrong with an argument before it looks for any file."""
    needed = {
        name: REQUIRED.get(name, "nowhere")
        for name, parameter in inspect.signature(study).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    with pytest.raises(ValueError, match=said):
        study(**needed, **given)


@pytest.mark.parametrize("study", [each for each in STUDIES if "seed" in inspect.signature(each).parameters])
def test_no_study_takes_a_negative_seed(study: type[Study]) -> None:
    refused(study, "seed -1", seed=-1)


@pytest.mark.parametrize("study", [Patching, Plans, Retargeting, SpatialIntervention, Steering])
@pytest.mark.parametrize("distances", [(6, 2), (0, 3)])
def test_distances_have_to_rise(study: type[Study], distances: tuple[int, int]) -> None:
    refused(study, r"distances \[\d, \d\] must rise from at least 1", distances=distances)


@pytest.mark.parametrize("name", ["num_environments", "max_steps"])
def test_play_that_comes_after_training_is_checked_before_it(name: str) -> None:
    refused(SAEBaselines, f"{name} 0 must be at least 1", **{name: 0})


def test_a_file_is_named_once_however_it_is_written() -> None:
    check_files("sae", ["a", "b/a"])
    for paths in (["a", "b/../a"], []):
        with pytest.raises(ValueError, match=r"sae .* at least one file, and none twice"):
            check_files("sae", paths)
    refused(SAEBaselines, "none twice", more=("nowhere",))


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
