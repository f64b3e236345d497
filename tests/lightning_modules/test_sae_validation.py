import pytest
import torch

from lightning_modules.sae_validation import SAEValidation
from networks import SparseAutoencoder


@pytest.mark.parametrize("signed", [False, True])
def test_the_raw_sparsity_counts_channels_that_are_not_zero(signed: bool) -> None:
    torch.manual_seed(0)
    sae, acts = SparseAutoencoder(5, 2), torch.randn(30, 5, 3, 2)
    acts[:, 4] = 0
    acts = acts if signed else acts.relu()
    inside = torch.rand(30, 3, 2) < 0.6
    validation = SAEValidation(10, (5, 3, 2))
    for rows in torch.arange(30).split(11):
        validation.update(sae, acts[rows], inside[rows], rows)
    values = validation.compute(sae).values
    counts = (acts != 0).sum(1)
    assert values["l0_raw"].item() == pytest.approx(counts.double().mean().item())
    assert values["l0_raw_inside"].item() == pytest.approx(counts[inside].double().mean().item())
    assert (values["l0_raw"] == 4) == signed
