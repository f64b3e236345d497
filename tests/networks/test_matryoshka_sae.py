import pytest
import torch

from networks import MatryoshkaSAE, Progress


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_loss_is_the_mean_over_prefixes(kernel_size: int) -> None:
    """Against decoding each prefix by itself, the rest of the latents set to 0."""
    torch.manual_seed(0)
    sae = MatryoshkaSAE(4, 4, kernel_size, k=5, prefixes=[0.125, 0.5])
    sae.set_normalisation(torch.randn(4), torch.tensor(2.0))
    acts = torch.randn(6, 4, 3, 3)
    pre_activations = sae.pre_activations(acts)
    latents = sae.activate(pre_activations)
    expected = []
    for end in (2, 8, 16):
        prefix = torch.cat([latents[:, :end], torch.zeros_like(latents[:, end:])], dim=1)
        errors = ((sae.decode(prefix) - acts) / sae.scale).double()
        expected.append(errors.square().sum().item() / (6 * 3 * 3))
    errors = (sae.decode(latents) - acts) / sae.scale
    progress = Progress(torch.tensor(0.0), torch.zeros(16), torch.zeros(16, dtype=torch.bool))
    terms = sae.losses(pre_activations, latents, errors, progress)
    assert terms.keys() == {"reconstruction"}
    assert terms["reconstruction"].item() == pytest.approx(sum(expected) / 3, rel=1e-5)


@pytest.mark.parametrize("prefixes", [[0.5, 0.5], [0.5, 0.25], [0.0], [1.0], [0.01]])
def test_refuses_prefixes(prefixes: list[float]) -> None:
    with pytest.raises(ValueError, match="choose shares that rise"):
        MatryoshkaSAE(4, 4, 1, 3, prefixes)
