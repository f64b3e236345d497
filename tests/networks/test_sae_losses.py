import math

import pytest
import torch

from networks.sae_losses import count_firings, reconstruction_loss, sparsity_loss


@pytest.mark.parametrize("space", [(), (3, 2)])
def test_losses_match_naive_loops(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    errors = torch.randn(4, 5, *space)
    latents = torch.randn(4, 6, *space).relu()
    norms, coefficients = torch.rand(6) + 0.5, torch.rand(6)
    inputs = 4 * math.prod(space)

    squared = sum(float(value) ** 2 for value in errors.flatten().double()) / inputs
    assert reconstruction_loss(errors).item() == pytest.approx(squared, rel=1e-5)

    def naive(knee: float | None) -> float:
        total = 0.0
        for row in latents.movedim(1, -1).reshape(-1, 6).double():
            for value, norm, weight in zip(row.tolist(), norms.tolist(), coefficients.tolist(), strict=True):
                size = value * norm
                total += weight * (size if knee is None else knee * math.log(1 + size / knee))
        return total / inputs

    for knee in (None, 0.5, 4.0):
        assert sparsity_loss(latents, norms, coefficients, knee).item() == pytest.approx(naive(knee), rel=1e-5)
    assert count_firings(latents).tolist() == [
        sum(bool(value > 0) for value in latents[:, unit].flatten()) for unit in range(6)
    ]


def test_positions_are_inputs() -> None:
    """The same positions as maps or as rows: one loss (averaging over maps only would make it H x W times larger)."""
    maps = torch.randn(4, 5, 3, 2)
    rows = maps.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(reconstruction_loss(maps), reconstruction_loss(rows))
    norms, ones = torch.rand(5), torch.ones(5)
    torch.testing.assert_close(
        sparsity_loss(maps.relu(), norms, ones, 1.0), sparsity_loss(rows.relu(), norms, ones, 1.0)
    )


def test_a_large_knee_is_plain_l1() -> None:
    latents, norms, ones = torch.rand(100, 8), torch.rand(8), torch.ones(8)
    l1 = sparsity_loss(latents, norms, ones)
    torch.testing.assert_close(sparsity_loss(latents, norms, ones, 1e4), l1, rtol=1e-3, atol=0)


def test_scaling_latents_against_the_decoder_changes_nothing() -> None:
    latents, norms, ones = torch.rand(10, 8), torch.rand(8), torch.ones(8)
    for knee in (None, 0.7):
        torch.testing.assert_close(
            sparsity_loss(latents / 10, norms * 10, ones, knee), sparsity_loss(latents, norms, ones, knee)
        )
