import pytest
import torch

from lightning_modules.sae_training import LossTally


def test_numbers_are_tallied_by_name_in_whatever_order_they_come() -> None:
    tally = LossTally("do better")
    tally.add({"loss": torch.tensor(1.0), "l0": torch.tensor(10.0)}, 0)
    tally.add({"l0": torch.tensor(20.0), "loss": torch.tensor(2.0)}, 1)
    assert {name: float(value) for name, value in tally.means().items()} == {"loss": 1.5, "l0": 15.0}
    with pytest.raises(KeyError):
        tally.add({"loss": torch.tensor(1.0)}, 2)


def test_numbers_are_looked_at_once_a_step_though_it_has_several_batches() -> None:
    tally, looks = LossTally("do better"), []
    for batch in range(12):
        step = batch // 3
        tally.add({"loss": torch.tensor(float(batch))}, step)
        if tally.due(2):
            looks.append((step, float(tally.means()["loss"])))
    assert looks == [(1, 1.5), (3, 6.5)]


def test_what_is_not_finite_is_named_with_its_first_step() -> None:
    tally = LossTally("do better")
    bad, fine = torch.tensor(torch.nan), torch.tensor(1.0)
    for step, one, other in ((0, fine, fine), (1, fine, bad), (2, bad, bad)):
        tally.add({"one/loss": one, "one/l0": fine, "other/loss": other, "other/l0": other}, step)
    with pytest.raises(ValueError, match=r"^other/loss not finite since step 1: do better$"):
        tally.means()


def test_where_nothing_is_logged_nothing_is_due() -> None:
    tally = LossTally("do better")
    tally.add({"loss": torch.tensor(1.0)}, 0)
    assert not tally.due(0)
