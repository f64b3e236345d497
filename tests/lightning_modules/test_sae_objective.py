from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.sae_objective import SAEObjective
from lightning_modules.sae_revival import auxk_loss
from networks import Progress, SparseAutoencoder
from tests.networks.test_sae_base import KINDS


def progress(step: int, latents: int) -> Progress:
    return Progress(torch.tensor(float(step)), torch.rand(latents), torch.arange(latents) < step)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compiles_once_as_one_piece(kind: Any) -> None:
    """Captured whole, without a break, and never again; the same numbers as eagerly (generating code takes longer)."""
    torch.manual_seed(0)
    objective = SAEObjective(kind(8, 4, 1), auxk_coefficient=1 / 32, auxk_latents=4)
    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            acts, now = torch.randn(64, 8), progress(step, 32)
            results = []
            for way in (compiled, objective):
                objective.zero_grad()
                loss, numbers, fired = way(acts, now)
                loss.backward()
                results.append((numbers, fired, [parameter.grad for parameter in objective.parameters()]))
            torch.testing.assert_close(*results)


def naive_auxk(sae: SparseAutoencoder, pre: Tensor, errors: Tensor, dead: list[int], k: int) -> float:
    total = 0.0
    decoder = sae.decoder_weight[:, :, 0, 0].double()
    for row, error in zip(pre.double(), errors.double(), strict=True):
        chosen = sorted(dead, key=lambda latent: row[latent].item(), reverse=True)[:k]
        predicted = sum(max(0.0, row[latent].item()) * decoder[:, latent] for latent in chosen)
        total += (-error - predicted).square().sum().item()  # activation minus reconstruction is to be predicted
    return total / len(pre)


def test_auxk_has_the_dead_predict_the_error() -> None:
    torch.manual_seed(0)
    sae = SparseAutoencoder(4, 3)
    acts = torch.randn(30, 4)
    pre = sae.pre_activations(acts)
    errors = torch.randn(30, 4, requires_grad=True)
    chosen = [1, 4, 5, 9]
    dead = torch.zeros(12, dtype=torch.bool)
    dead[chosen] = True
    loss = auxk_loss(sae, pre, errors, dead, 2)
    assert loss.item() == pytest.approx(naive_auxk(sae, pre.detach(), errors.detach(), chosen, 2), rel=1e-5)
    loss.backward()
    assert errors.grad is None
    for gradient in (sae.encoder_weight.grad, sae.decoder_weight.grad.transpose(0, 1)):  # type: ignore[union-attr]
        assert gradient is not None
        assert torch.equal(gradient.flatten(1).any(1), dead)
    assert auxk_loss(sae, pre, errors, torch.zeros_like(dead), 2) == 0
