import numpy as np
import pytest
import torch

from interpretability.component_codes import (
    independent_components,
    non_negative_parts,
    principal_components,
    raw_channels,
)


def mixtures(rows: int = 4_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse non-negative mixtures of six directions in eight channels."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.rand(6, 8, generator=generator) * (torch.rand(6, 8, generator=generator) < 0.5)
    directions[torch.arange(6), torch.arange(6)] += 1
    sizes = torch.rand(rows, 6, generator=generator) * (torch.rand(rows, 6, generator=generator) < 0.3)
    return sizes @ directions, directions


def best_cosines(found: torch.Tensor, planted: torch.Tensor) -> torch.Tensor:
    units = [x / x.norm(dim=1, keepdim=True) for x in (found, planted)]
    return (units[0] @ units[1].T).abs().amax(0)


@pytest.mark.parametrize("make", [raw_channels, principal_components, independent_components])
def test_all_components_together_lose_nothing(make) -> None:
    rows, _ = mixtures()
    code = make(rows)
    maps = rows.view(-1, 2, 2, 8).movedim(-1, 1)
    torch.testing.assert_close(code(maps), maps, atol=1e-4, rtol=1e-4)
    assert code(maps.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(code(rows), rows, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [raw_channels, principal_components, independent_components])
def test_a_limit_keeps_the_largest_contributions(make) -> None:
    rows, _ = mixtures()
    whole = make(rows)
    code = whole.limited(rows, 1.5)
    assert whole.threshold == 0
    kept = code.encode(rows)
    assert (kept != 0).sum(1).float().mean() == pytest.approx(1.5, abs=0.01)
    sizes = (code.coefficients(rows).abs() * code.directions.norm(dim=1)).numpy()
    assert sizes[kept.numpy() != 0].min() >= sizes[kept.numpy() == 0].max()
    assert code.limited(rows, 8).threshold == 0
    with pytest.raises(ValueError, match="above 0"):
        code.limited(rows, 0)


def test_principal_components_of_a_limit_are_the_closest_of_their_number() -> None:
    """Orthonormal directions: the error is the energy of what was left out."""
    rows, _ = mixtures()
    code = principal_components(rows).limited(rows, 2)
    kept = code.encode(rows)
    left = (code.coefficients(rows) - kept).square().sum()
    assert (code(rows) - rows).square().sum().item() == pytest.approx(left.item(), rel=1e-3)
    covariance = np.cov(rows.double().numpy().T)
    assert code.coefficients(rows).var(0).sum().item() == pytest.approx(np.trace(covariance), rel=1e-3)


def test_independent_components_and_parts_find_a_planted_dictionary() -> None:
    rows, planted = mixtures()
    assert best_cosines(independent_components(rows).directions, planted).mean() > 0.9  # they are not independent
    parts = non_negative_parts(rows, 6)
    assert best_cosines(parts.directions, planted).mean() > 0.95
    assert parts.encode(rows).min() >= 0
    assert 1 - (parts(rows) - rows).square().sum() / (rows - rows.mean(0)).square().sum() > 0.95


def test_more_parts_than_channels_and_none_below_0() -> None:
    rows, _ = mixtures(1_000)
    assert non_negative_parts(rows, 16).directions.shape == (16, 8)
    with pytest.raises(ValueError, match="after its ReLU"):
        non_negative_parts(rows - 1, 4)


def test_channels_that_fall_below_zero_are_taken_about_their_means() -> None:
    """What is left out then costs its variance, not its mean square: no more than components leave out."""
    rows, _ = mixtures()
    shifted = rows - torch.arange(8.0)
    code = raw_channels(shifted).limited(shifted, 1.5)
    errors = (code(shifted) - shifted).square().mean(0)
    assert (errors <= shifted.var(0, correction=0) + 1e-5).all()
    torch.testing.assert_close(raw_channels(shifted)(shifted), shifted)
    assert (raw_channels(rows).mean == 0).all()
