import math

import pytest
import torch

from networks import GatedSAE, Progress


def random_sae() -> GatedSAE:
    torch.manual_seed(0)
    sae = GatedSAE(3, 2, 1, sparsity_coefficient=0.6, sparsity_warmup_steps=0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.normal_()
    return sae


def test_matches_the_papers_two_encoders() -> None:
    """With a magnitude encoder of its own that is the gate's, scaled a latent: relu(W_mag x + b_mag), gate open."""
    sae = random_sae()
    acts = torch.randn(20, 3)
    latents = sae.encode(acts)
    weight, bias = sae.encoder_weight[:, :, 0, 0].tolist(), sae.encoder_bias.tolist()
    for row, result in zip(acts.tolist(), latents.tolist(), strict=True):
        for latent in range(6):
            product = sum(w * x for w, x in zip(weight[latent], row, strict=True))
            gain = math.exp(sae.gain[latent].item())
            magnitude = gain * product + (gain * bias[latent] + sae.magnitude_bias[latent].item())
            expected = max(0.0, magnitude) if product + bias[latent] > 0 else 0.0
            assert result[latent] == pytest.approx(expected, abs=1e-5)


def test_loss_terms() -> None:
    sae = random_sae()
    acts = torch.randn(20, 3)
    pre_activations = sae.pre_activations(acts)
    latents = sae.activate(pre_activations)
    errors = sae.decode(latents) - acts
    progress = Progress(torch.tensor(0.0), torch.zeros(6), torch.zeros(6, dtype=torch.bool))
    terms = sae.losses(pre_activations, latents, errors, progress)
    gates = pre_activations.relu()
    assert terms["reconstruction"].item() == pytest.approx(errors.double().square().sum().item() / 20)
    assert terms["sparsity"].item() == pytest.approx(0.6 * (gates * sae.decoder_norms()).double().sum().item() / 20)
    left = (sae.decode(gates) - acts).double()
    assert terms["auxiliary"].item() == pytest.approx(left.square().sum().item() / 20)

    terms["auxiliary"].backward(retain_graph=True)
    for name in ("decoder_weight", "decoder_bias", "gain", "magnitude_bias"):
        gradient = sae.get_parameter(name).grad
        assert gradient is None or not gradient.any(), f"the auxiliary term must not train {name}"
    assert sae.encoder_weight.grad is not None
    assert sae.encoder_weight.grad.any()

    sae.zero_grad()
    terms["sparsity"].backward()
    for name in ("gain", "magnitude_bias"):
        assert sae.get_parameter(name).grad is None, "the penalty shrinks no magnitude"
