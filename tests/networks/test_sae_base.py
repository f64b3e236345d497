"""What every kind of autoencoder must do; a new kind that `networks` names is tried here without a line of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import networks
from networks import Progress, SAEBase, load_sae, save_weights
from networks.geometric_median import geometric_median

KINDS = [kind for name in networks.__all__ if isinstance(kind := getattr(networks, name), type)]
KINDS = [kind for kind in KINDS if issubclass(kind, SAEBase) and kind is not SAEBase]
# coefficients for the planted mixtures below, which are far sparser than the defaults' activations
PLANTED: dict[str, dict[str, Any]] = {
    "SparseAutoencoder": {"sparsity_knee": None, "rare_frequency": None},
    "TopKSAE": {"k": 2},
    "BatchTopKSAE": {"k": 2},
    "MatryoshkaSAE": {"k": 2, "prefixes": [0.75]},  # a prefix too small for all directions would have to mix them
    "JumpReLUSAE": {"sparsity_coefficient": 1.5, "bandwidth": 1.0, "initial_threshold": 0.5},
    "GatedSAE": {"sparsity_coefficient": 3.0},
}


def progress(sae: SAEBase, step: int = 1000) -> Progress:
    return Progress(
        torch.tensor(float(step)), torch.full((sae.num_latents,), 0.1), torch.zeros(sae.num_latents, dtype=torch.bool)
    )


def losses(sae: SAEBase, acts: Tensor, step: int = 1000) -> dict[str, Tensor]:
    pre_activations = sae.pre_activations(acts)
    latents = sae.activate(pre_activations)
    errors = (sae.decode(latents) - acts) / sae.scale
    sae.observe(latents.detach())
    return sae.losses(pre_activations, latents, errors, progress(sae, step))


@pytest.mark.parametrize("kind", KINDS)
def test_recovers_a_planted_dictionary(kind: Any) -> None:
    """Sparse non-negative mixtures of 24 directions of 16 channels, 1.5 at once on average."""
    torch.manual_seed(0)
    directions = normalize(torch.randn(24, 16), dim=1)
    active = torch.rand(10_000, 24) < 1.5 / 24
    data = (active * (0.5 + torch.rand(10_000, 24))) @ directions
    sae = kind(16, 3, 1, **PLANTED.get(kind.__name__, {}))
    sae.set_normalisation(data.mean(0), (data - data.mean(0)).square().mean().sqrt())
    first = normalize(sae.directions()[:, :, 0, 0], dim=1).detach().clone()
    steps = 600
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (steps - step) / (0.4 * steps)))
    for step in range(steps):
        optimiser.zero_grad()
        acts = data[torch.randint(len(data), (512,))]
        torch.stack(list(losses(sae, acts, step).values())).sum().backward()
        if sae.unit_norm_decoder:
            sae.project_decoder_gradient()
        optimiser.step()
        falling.step()
        if sae.unit_norm_decoder:
            sae.normalise_decoder()
    assert (directions @ first.T).amax(1).mean() < 0.7, "chance is far below"
    found = normalize(sae.directions()[:, :, 0, 0], dim=1)
    assert (directions @ found.T).amax(1).mean() >= 0.95


def random_sae(kind: Any, kernel_size: int = 1) -> SAEBase:
    torch.manual_seed(0)
    sae = kind(8, 4, kernel_size)
    sae.set_normalisation(torch.randn(8), torch.tensor(1.7))
    with torch.no_grad():
        for parameter in (sae.encoder_bias, sae.decoder_bias, *sae.further_parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
    return sae


@pytest.mark.parametrize("kind", KINDS)
def test_maps_flat_activations_and_wide_kernels(kind: Any) -> None:
    acts = 2 * torch.randn(6, 8, 5, 4)
    rows = acts.movedim(1, -1).flatten(0, -2)
    for training in (True, False):
        sae = random_sae(kind).train(training)
        torch.testing.assert_close(sae.encode(acts).movedim(1, -1).flatten(0, -2), sae.encode(rows))
        torch.testing.assert_close(losses(sae, acts), losses(sae, rows))
        for each, inputs in ((sae, acts), (sae, rows), (random_sae(kind, 3).train(training), acts)):
            latents = each.encode(inputs)
            assert (latents >= 0).all()
            assert (latents > 0).any()
            assert each(inputs).shape == inputs.shape
            torch.stack(list(losses(each, inputs).values())).sum().backward()
            for name, parameter in each.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_survives_saving_and_loading(kind: Any, tmp_path: Path) -> None:
    sae = random_sae(kind, 3)
    acts = torch.randn(6, 8, 5, 4)
    losses(sae, acts)  # a threshold is estimated where there is one
    save_weights(tmp_path / "sae.safetensors", sae, {"kind": kind.__name__, "tap": "conv4a", "agent_hash": ""})
    again = load_sae(tmp_path / "sae.safetensors")
    assert type(again) is kind
    assert again.config() == sae.config()
    assert torch.equal(again(acts), sae.eval()(acts))


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_looks_at_one_input_at_a_time(kind: Any) -> None:
    sae = random_sae(kind)
    acts = torch.randn(20, 8)
    losses(sae, acts)
    sae.eval()
    torch.testing.assert_close(sae.encode(acts)[:5], sae.encode(acts[:5]))


def test_unit_norm_leaves_lengths_out_of_the_step() -> None:
    sae = random_sae(networks.TopKSAE, 3)
    losses(sae, torch.randn(6, 8, 5, 4))["reconstruction"].backward()
    sae.project_decoder_gradient()
    gradient = sae.decoder_weight.grad
    assert gradient is not None
    for latent in range(sae.num_latents):
        along = (gradient[:, latent] * sae.decoder_weight[:, latent]).sum()
        assert along.abs() < 1e-5 * max(1.0, gradient[:, latent].norm().item())
    assert gradient.norm() > 0
    with torch.no_grad():
        sae.decoder_weight.mul_(3)
    sae.normalise_decoder()
    torch.testing.assert_close(sae.decoder_norms(), torch.ones(sae.num_latents))


def test_geometric_median() -> None:
    """A far outlier hardly moves it; no small step in any direction is better; on a line it is the median."""
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(200, 3), torch.full((20, 3), 1000.0)]).double()
    median = geometric_median(rows, 200)
    assert median.norm() < 1
    best = (rows - median).norm(dim=1).sum()
    for step in 0.01 * torch.cat([torch.eye(3), -torch.eye(3)]).double():
        assert (rows - median - step).norm(dim=1).sum() > best
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]]).double()
    torch.testing.assert_close(geometric_median(line, 500), torch.tensor([2.0]).double(), atol=1e-2, rtol=0)
    assert torch.equal(geometric_median(torch.ones(4, 2)), torch.ones(2))


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_the_encoder_sees_what_differs_from_the_first_decoder_bias(kernel_size: int) -> None:
    sae = networks.SparseAutoencoder(4, 2, kernel_size)
    bias = torch.randn(4)
    inputs = torch.randn(2, 4, 5, 5)
    before = sae.pre_activations(inputs)
    sae.set_decoder_bias(bias)
    after = sae.pre_activations(inputs + bias[:, None, None])
    torch.testing.assert_close(after[..., 1:-1, 1:-1], before[..., 1:-1, 1:-1], atol=1e-5, rtol=1e-5)  # not the padding
    assert torch.equal(sae.decoder_bias, bias)
