import pytest
import torch

from networks import BatchTopKSAE


@pytest.mark.parametrize("space", [(), (3, 2)])
def test_a_batch_keeps_k_an_input(space: tuple[int, ...]) -> None:
    """The budget counts positions, not maps; against a plain sort of everything."""
    torch.manual_seed(0)
    sae = BatchTopKSAE(6, 2, 1, k=3)
    pre_activations = torch.randn(10, 12, *space)
    inputs = pre_activations.numel() // 12
    smallest = sorted(pre_activations.flatten().tolist())[-3 * inputs]
    latents = sae.activate(pre_activations)
    assert (latents > 0).sum() == 3 * inputs
    expected = [value if value >= smallest else 0.0 for value in pre_activations.flatten().tolist()]
    assert latents.flatten().tolist() == expected
    assert len((latents > 0).movedim(1, -1).reshape(-1, 12).sum(1).unique()) > 1, "inputs share the budget"


def test_k_need_not_be_whole() -> None:
    sae = BatchTopKSAE(6, 2, 1, k=1.3)
    assert (sae.activate(torch.rand(100, 12)) > 0).sum() == 130
    assert BatchTopKSAE(**sae.config()).k == 1.3
    with pytest.raises(ValueError, match="k is 0: choose above 0 and at most 12"):
        BatchTopKSAE(6, 2, 1, k=0)


def test_the_threshold_is_the_mean_of_the_smallest_kept() -> None:
    torch.manual_seed(0)
    sae = BatchTopKSAE(6, 2, 1, k=2)
    smallest = []
    for _ in range(5):
        latents = sae.activate(torch.randn(40, 12))
        smallest.append(latents[latents > 0].min().item())
        sae.observe(latents)
    sae.observe(torch.zeros(40, 12))  # nothing fired, nothing is learnt
    assert sae.threshold.item() == pytest.approx(sum(smallest) / 5)
    assert sae.observed == 5


@pytest.mark.parametrize("space", [(), (4, 4)])
def test_training_and_evaluation_agree_on_l0(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sae = BatchTopKSAE(8, 4, 1, k=5)
    for _ in range(300):
        sae.observe(sae.encode(torch.randn(64, 8, *space)))
    acts = torch.randn(2000, 8, *space)
    inputs = acts.numel() // 8
    l0 = [((sae.train(training).encode(acts) > 0).sum() / inputs).item() for training in (True, False)]
    assert l0[0] == pytest.approx(5, abs=1e-6)
    assert l0[1] == pytest.approx(5, rel=0.03)
