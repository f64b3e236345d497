import pytest
import torch
from torch import Tensor

from networks import CustomCNN, Progress, SparseAutoencoder


def random_sae(in_channels: int = 3, expansion: int = 4, kernel_size: int = 1) -> SparseAutoencoder:
    torch.manual_seed(0)
    sae = SparseAutoencoder(in_channels, expansion, kernel_size)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    sae.set_normalisation(torch.randn(in_channels), torch.tensor(1.7))
    return sae


def naive_convolution(maps: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Zero-padded correlation, one output at a time."""
    rows, _, height, width = maps.shape
    outputs, _, size, _ = weight.shape
    half = size // 2
    result = torch.zeros(rows, outputs, height, width, dtype=maps.dtype)
    for y in range(height):
        for x in range(width):
            for dy in range(-half, half + 1):
                for dx in range(-half, half + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        kernel = weight[:, :, dy + half, dx + half]
                        result[:, :, y, x] += maps[:, :, y + dy, x + dx] @ kernel.T
    return result + bias[None, :, None, None]


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_matches_naive_float64(kernel_size: int) -> None:
    sae = random_sae(kernel_size=kernel_size)
    acts = torch.randn(2, 3, 4, 5)
    exact = {name: tensor.double() for name, tensor in sae.state_dict().items()}
    normal = (acts.double() - exact["mean"][None, :, None, None]) / exact["scale"]
    latents = naive_convolution(normal, exact["encoder_weight"], exact["encoder_bias"]).clamp_min(0)
    decoded = naive_convolution(latents, exact["decoder_weight"], exact["decoder_bias"])
    expected = decoded * exact["scale"] + exact["mean"][None, :, None, None]
    torch.testing.assert_close(sae.encode(acts).double(), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(acts).double(), expected, rtol=1e-5, atol=2e-5)


def test_flat_activations_are_maps_of_one_position() -> None:
    sae = random_sae()
    acts = torch.randn(7, 3)
    torch.testing.assert_close(sae(acts), sae(acts[:, :, None, None])[:, :, 0, 0])
    maps = torch.randn(2, 3, 4, 5)
    rows = maps.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(sae(maps).movedim(1, -1).flatten(0, -2), sae(rows))


def test_directions_are_what_a_latent_adds() -> None:
    for kernel_size in (1, 3):
        sae = random_sae(kernel_size=kernel_size)
        latents = torch.zeros(1, sae.num_latents, 5, 5)
        without = sae.decode(latents)
        latents[0, 5, 2, 2] = 1
        added = (sae.decode(latents) - without)[0]
        half = kernel_size // 2
        window = added[:, 2 - half : 3 + half, 2 - half : 3 + half].flip(1, 2)  # convolution places a kernel mirrored
        torch.testing.assert_close(window, sae.directions()[5])
        torch.testing.assert_close(sae.decoder_norms()[5] * sae.scale, sae.directions()[5].norm())
        assert added.count_nonzero() == 3 * kernel_size**2


def test_fresh_decoder_has_unit_norms_and_tied_encoder() -> None:
    sae = SparseAutoencoder(4, 2, 3)
    torch.testing.assert_close(sae.decoder_norms(), torch.ones(8))
    maps = torch.randn(1, 4, 6, 6)
    # the encoder is the decoder's transpose as a linear map: <decode(f), x> = <f, encode(x)>
    latents = torch.randn(1, 8, 6, 6)
    pre = torch.nn.functional.conv2d(maps, sae.encoder_weight, padding=1)
    torch.testing.assert_close((sae.decode(latents) * maps).sum(), (latents * pre).sum(), rtol=1e-4, atol=1e-4)


def test_same_function_under_autocast_and_keeps_the_type() -> None:
    sae = random_sae()
    acts = torch.randn(5, 3, 4, 4).bfloat16()
    plain = sae(acts)
    with torch.autocast("cpu", torch.bfloat16):
        cast = sae(acts)
        assert sae.encode(acts).dtype == torch.float32
    assert plain.dtype == cast.dtype == torch.bfloat16
    assert torch.equal(plain, cast)


def test_is_an_edit() -> None:
    agent = CustomCNN()
    frames = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    sae = random_sae(32)
    sae.set_normalisation(torch.zeros(32), torch.tensor(1.0))
    raw = agent(frames, record=("conv4a",), outputs=False).activations["conv4a"]
    spliced = agent(frames, record=("conv4a",), edits=[("conv4a", sae)])
    assert torch.equal(spliced.activations["conv4a"], sae(raw))
    assert spliced.activations["conv4a"].dtype == raw.dtype


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"expansion": 0}, {"kernel_size": 2}, {"kernel_size": -1}])
def test_refuses_arguments(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SparseAutoencoder(**{"in_channels": 3, **arguments})


@pytest.mark.parametrize("name", ["sparsity_coefficient", "sparsity_knee", "rare_frequency", "sparsity_warmup_steps"])
def test_refuses_arguments_of_its_penalty(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        SparseAutoencoder(3, **{name: -1})


def test_the_penalty_rises_and_spares_rare_latents() -> None:
    sae = SparseAutoencoder(2, 2, 1, 0.8, sparsity_knee=None, rare_frequency=0.01, sparsity_warmup_steps=10)
    latents = torch.rand(50, 4)
    for step, frequency, shares in (
        (4, [0.02, 0.01, 0.005, 0.0], [1, 1, 0.5, 0]),
        (500, [float("nan")] * 4, [1, 1, 1, 1]),
    ):
        progress = Progress(torch.tensor(float(step)), torch.tensor(frequency), torch.zeros(4, dtype=torch.bool))
        penalty = sae.losses(latents, latents, torch.zeros(50, 2), progress)["sparsity"]
        each = (latents * sae.decoder_norms()).double().mean(0)
        weighted = sum(share * size for share, size in zip(shares, each.tolist(), strict=True))
        assert penalty.item() == pytest.approx(0.8 * min(1.0, (step + 1) / 10) * weighted)


def test_refuses_what_does_not_fit() -> None:
    sae = random_sae()
    with pytest.raises(ValueError, match="3 channels"):
        sae.encode(torch.zeros(2, 5, 4, 4))
    with pytest.raises(ValueError, match="whole maps"):
        random_sae(kernel_size=3).encode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="3 channels"):
        sae.set_normalisation(torch.zeros(4), torch.tensor(1.0))
    for scale in (0.0, float("nan")):
        with pytest.raises(ValueError, match="scale"):
            sae.set_normalisation(torch.zeros(3), torch.tensor(scale))
