from pathlib import Path

import numpy as np
import pytest
from torch import nn

from interpretability.kept import Kept, edit_hashes


def never() -> dict[str, np.ndarray]:
    raise AssertionError("worked out again")


def test_what_was_worked_out_is_found_again_until_it_is_forgotten(tmp_path: Path) -> None:
    made = {"lengths": np.arange(3), "solved": np.array([True, False]), "kl": np.array([0.5, np.nan])}
    kept = Kept(tmp_path, {"levels": range(3)})
    kept.arrays("an arm/of two words", lambda: made)
    assert kept.numbers("seen", lambda count: {"all": [count]}, 3) == {"all": [3]}
    again = Kept(tmp_path, {"levels": range(3)})
    assert again.numbers("seen", never) == {"all": [3]}
    found = again.arrays("an arm/of two words", never)
    assert found.keys() == made.keys()
    for name, array in made.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    other = Kept(tmp_path, {"levels": range(4)})
    assert other.numbers("seen", lambda: {"all": [4]}) == {"all": [4]}
    again.forget()
    with pytest.raises(AssertionError, match="worked out again"):
        kept.arrays("an arm/of two words", never)
    assert other.numbers("seen", never) == {"all": [4]}


def test_what_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="worked out again"):
        Kept(tmp_path, {}).arrays("arm", never)
    assert not list(tmp_path.rglob("*"))


def test_edits_are_told_apart_by_place_kind_and_tensors() -> None:
    one, other = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    assert edit_hashes([("conv4a", one)]) == edit_hashes([("conv4a", one)])
    edits = [("conv4a", one), ("conv3a", one), ("conv4a", other), ("conv4a", nn.Identity()), ("conv4a", nn.ReLU())]
    assert len({str(edit_hashes([edit])) for edit in edits}) == len(edits)
