import pytest
import torch

from lightning_modules.sae_training import LossTally


def test_numbers_are_tallied_by_name_in_whatever_order_they_come() -> None:
    tally = LossTally()
    tally.add({"loss": torch.tensor(1.0), "l0": torch.tensor(10.0)}, 0)
    tally.add({"l0": torch.tensor(20.0), "loss": torch.tensor(2.0)}, 1)
    assert {name: float(value) for name, value in tally.means().items()} == {"loss": 1.5, "l0": 15.0}
    with pytest.raises(KeyError):
        tally.add({"loss": torch.tensor(1.0)}, 2)
