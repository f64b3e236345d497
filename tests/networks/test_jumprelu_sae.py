import math

import pytest
import torch

from networks import JumpReLUSAE, Progress


def test_latents_and_straight_through_gradients() -> None:
    """Value by value against the paper's definitions."""
    sae = JumpReLUSAE(1, 1, 1, sparsity_coefficient=0.7, sparsity_warmup_steps=4, bandwidth=0.4, initial_threshold=0.5)
    values = [-0.5, 0.25, 0.35, 0.49, 0.51, 0.65, 0.75, 3.0]
    pre_activations = torch.tensor(values)[:, None].requires_grad_()
    latents = sae.activate(pre_activations)
    assert latents[:, 0].tolist() == pytest.approx([value if value > 0.5 else 0 for value in values])

    weights = torch.arange(1.0, 9)
    (latents[:, 0] @ weights).backward()
    inside = [abs(value - 0.5) < 0.2 for value in values]
    # d latent / d threshold = -threshold / bandwidth inside; times threshold for its logarithm
    expected = sum(-0.5 / 0.4 * weight * within for weight, within in zip(weights.tolist(), inside, strict=True)) * 0.5
    assert sae.log_threshold.grad is not None
    assert sae.log_threshold.grad.item() == pytest.approx(expected)
    assert pre_activations.grad is not None
    assert pre_activations.grad[:, 0].tolist() == [w if v > 0.5 else 0 for w, v in zip(weights, values, strict=True)]

    sae.zero_grad()
    progress = Progress(torch.tensor(1.0), torch.zeros(1), torch.zeros(1, dtype=torch.bool))
    penalty = sae.losses(pre_activations, latents, torch.zeros(8, 1), progress)["sparsity"]
    assert penalty.item() == pytest.approx(0.7 * 2 / 4 * 4 / 8)  # half way through the warm-up; 4 of 8 fire
    penalty.backward()
    assert sae.log_threshold.grad.item() == pytest.approx(-0.35 / 8 * sum(inside) / 0.4 * 0.5)


def test_new_latents_begin_with_the_first_threshold() -> None:
    sae = JumpReLUSAE(2, 2, 1, initial_threshold=0.3)
    assert list(sae.further_parameters().values()) == [math.log(0.3)]
    torch.testing.assert_close(sae.log_threshold.exp(), torch.full((4,), 0.3))


@pytest.mark.parametrize("name", ["bandwidth", "initial_threshold"])
def test_refuses_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        JumpReLUSAE(4, **{name: 0.0})
