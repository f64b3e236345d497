import pytest
import torch

from networks import TopKSAE
from networks.topk_sae import keep_top


@pytest.mark.parametrize("space", [(), (3, 2)])
def test_keeps_the_largest_of_each_position(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 12, *space)
    kept = keep_top(values, 4).movedim(1, -1).reshape(-1, 12)
    for row, result in zip(values.movedim(1, -1).reshape(-1, 12).tolist(), kept.tolist(), strict=True):
        largest = sorted(row)[-4:]
        assert result == [value if value in largest else 0 for value in row]


def test_equal_values_do_not_exceed_k() -> None:
    assert (keep_top(torch.ones(3, 9), 4) > 0).sum(1).tolist() == [4, 4, 4]


def test_no_latent_is_below_zero() -> None:
    sae = TopKSAE(4, 2, 1, k=3)
    latents = sae.activate(torch.tensor([[1.0, -1.0, -2.0, 3.0, -4.0, -5.0, -6.0, -7.0]]))
    assert latents.tolist() == [[1.0, 0, 0, 3.0, 0, 0, 0, 0]]


@pytest.mark.parametrize("k", [0, 9])
def test_refuses_k(k: int) -> None:
    with pytest.raises(ValueError, match="choose 1 to 8"):
        TopKSAE(4, 2, 1, k)
