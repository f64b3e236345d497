import numpy as np
import pytest
import torch
from torch import Tensor

from interpretability.colour import ColourMoments, ColourStatistics
from interpretability.parametrisations import FourierImages, PhaseImages, PixelImages, Unlikeness


def statistics(scale: float = 1.0) -> ColourStatistics:
    covariance = torch.tensor([[0.04, 0.03, 0.02], [0.03, 0.04, 0.03], [0.02, 0.03, 0.05]], dtype=torch.float64)
    return ColourStatistics(torch.tensor([0.5, 0.6, 0.4], dtype=torch.float64), covariance * scale)


def test_noise_has_the_games_mean_contrast_and_colours() -> None:
    colours = statistics(0.2)  # so small that hardly a pixel is cut off at black or white
    images = FourierImages(500, colours, 1.0, torch.Generator().manual_seed(0))().detach()
    pixels = images.reshape(-1, 3).double()
    torch.testing.assert_close(pixels.mean(0), colours.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(pixels.T.cov() / colours.covariance, torch.ones(3, 3).double(), atol=0.15, rtol=0)


def test_amplitude_falls_with_frequency() -> None:
    images = FourierImages(100, statistics(0.1), 1.5, torch.Generator().manual_seed(0))()
    power = torch.fft.fft(images[..., 0].detach() - images[..., 0].mean().detach(), dim=2).abs().square().mean((0, 1))
    assert power[1] > 4 * power[4] > 16 * power[16]


def test_gradients_lead_back_from_black_and_white() -> None:
    """And further out they do not."""
    images = FourierImages(1, statistics(100.0), 1.5, torch.Generator().manual_seed(0))
    shown = images()
    black, white = shown == 0, shown == 1
    assert black.any()
    assert white.any()
    for pixels, brighter in ((black, True), (white, False), (black, False), (white, True)):
        loss = (shown * pixels).sum() * (-1 if brighter else 1)
        (gradient,) = torch.autograd.grad(loss, images.entries, retain_graph=True)
        assert bool(gradient.any()) == (brighter == (pixels is black))


def test_selected_images_are_the_same_and_apart() -> None:
    noise = FourierImages(3, statistics(), 1.5, torch.Generator().manual_seed(0))
    chosen = noise.select(torch.tensor([2, 2, 0]))
    assert chosen.as_shown().equal(noise.as_shown()[[2, 2, 0]])
    chosen.entries.data[0] += 1
    assert chosen.as_shown()[1].equal(noise.as_shown()[2])


def test_unlikeness_counts_edges_and_strange_colours() -> None:
    unlikeness = Unlikeness(statistics(), smoothness=1.0, palette=1.0)
    plain = torch.tensor([0.5, 0.6, 0.4]).expand(1, 64, 64, 3)
    assert unlikeness(plain) == 0
    lighter = plain + 0.2  # along the direction in which the game varies
    magenta = plain + torch.tensor([0.4, -0.4, 0.4])
    assert unlikeness(lighter) == 0
    assert unlikeness(magenta) > 1
    board = plain.clone()
    board[:, ::2] += 0.1
    assert 0.09 < unlikeness(board) < 0.11


def frames() -> Tensor:
    """Smooth frames whose colours vary together."""
    noise = FourierImages(40, statistics(), 1.5, torch.Generator().manual_seed(1))
    return (noise.as_shown() * 255).round().to(torch.uint8)


def test_phase_images_have_the_magnitudes_of_real_frames() -> None:
    moments = ColourMoments(magnitudes=True)
    for part in frames().split(7):
        moments.update(part)
    colours = moments.statistics()
    assert colours.magnitude is not None
    whitened = colours.whiten(frames() / 255).permute(0, 3, 1, 2)
    spectra = torch.fft.rfft2(whitened, norm="ortho").numpy()
    torch.testing.assert_close(colours.magnitude, torch.from_numpy(np.sqrt((np.abs(spectra) ** 2).mean(0))))
    images = PhaseImages(3, colours, 1.0, torch.Generator().manual_seed(0))
    found = torch.fft.rfft2(images.planes().detach().double(), norm="ortho").abs()
    inner = slice(1, 32)  # the first and last column are their own mirror images
    torch.testing.assert_close(
        found[..., inner], colours.magnitude[..., inner].expand_as(found[..., inner]), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ValueError, match="magnitudes of real frames"):
        PhaseImages(1, statistics(), 1.0, torch.Generator())


def test_pixel_images_begin_as_fourier_images_do() -> None:
    pixel, fourier = (
        kind(2, statistics(), 1.5, torch.Generator().manual_seed(3)) for kind in (PixelImages, FourierImages)
    )
    torch.testing.assert_close(pixel(), fourier())
    assert pixel.entries.shape == (2, 3, 64, 64)
