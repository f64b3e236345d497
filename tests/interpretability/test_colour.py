import pytest
import torch
from torch import Tensor

from interpretability.colour import ColourMoments


def correlated_frames() -> Tensor:
    """Frames whose three colours vary together."""
    generator = torch.Generator().manual_seed(0)
    light = torch.rand(20, 64, 64, 1, generator=generator)
    noise = torch.rand(20, 64, 64, 3, generator=generator)
    frames = torch.tensor([0.7, 0.5, 0.2]) * light + torch.tensor([0.1, 0.2, 0.3]) * noise
    return (frames * 255).round().to(torch.uint8)


def fit(frames: Tensor, batch: int = 7) -> ColourMoments:
    moments = ColourMoments()
    for chunk in frames.split(batch):
        moments.update(chunk)
    return moments


def test_statistics_are_over_pixels_as_rows_of_three() -> None:
    frames = correlated_frames()
    statistics = fit(frames).statistics()
    pixels = frames.reshape(-1, 3).double() / 255
    torch.testing.assert_close(statistics.mean, pixels.mean(0))
    torch.testing.assert_close(statistics.covariance, pixels.T.cov(correction=0))
    assert statistics.covariance[0, 1] > 0.5 * statistics.covariance[0, 0]


def test_whitened_pixels_have_unit_covariance() -> None:
    frames = correlated_frames()
    whitened = fit(frames).statistics().whiten(frames.float() / 255).reshape(-1, 3)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(3, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(whitened.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-6, rtol=0)


def test_square_root() -> None:
    statistics = fit(correlated_frames()).statistics()
    torch.testing.assert_close(statistics.square_root @ statistics.square_root.T, statistics.covariance)


def test_grey_games_keep_one_direction() -> None:
    grey = correlated_frames()[..., :1].expand(-1, -1, -1, 3)
    statistics = fit(grey).statistics()
    assert statistics.square_root.isfinite().all()
    whitened = statistics.whiten(grey.float() / 255).reshape(-1, 3)
    assert whitened.T.cov().trace() == pytest.approx(1, abs=1e-3)


def test_faults_are_named() -> None:
    with pytest.raises(ValueError, match="no frames"):
        ColourMoments().statistics()
    with pytest.raises(ValueError, match="one colour"):
        fit(torch.full((2, 64, 64, 3), 9, dtype=torch.uint8)).statistics()
