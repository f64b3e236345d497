import pytest
import torch
from torch.nn import functional

from environments import EnvironmentSettings, VectorEnvironment
from interpretability import decompose, draw_eigenfilters, filter_images, split_direction
from networks import BilinearConv2d, BilinearImpala, BilinearLinear


@pytest.fixture(scope="module")
def net() -> BilinearImpala:
    """A network whose biases are not those of a fresh one, in float64."""
    torch.manual_seed(0)
    net = BilinearImpala().double().eval()
    for layer in net.children():
        if isinstance(layer, BilinearConv2d | BilinearLinear):
            layer.bias.data += 0.3 * torch.randn_like(layer.bias)
    return net.requires_grad_(False)


@pytest.fixture(scope="module")
def acts(net: BilinearImpala) -> dict[str, torch.Tensor]:
    """Activations on first frames of heist."""
    environment = VectorEnvironment(EnvironmentSettings(), 4)
    _, frames, _ = environment.observe()
    environment.close()
    images = torch.from_numpy(frames.copy()).double() / 255
    recorded = net(images, record=tuple(net.taps)).activations
    return {"frame": images.permute(0, 3, 1, 2), **recorded}


def random_direction(size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)


@pytest.mark.parametrize(("layer", "inputs"), [("conv1a", "frame"), ("conv2a", "pool1"), ("conv4a", "pool3")])
def test_all_eigenfilters_rebuild_a_convolution_along_a_direction(net, acts, layer, inputs):
    direction = random_direction(net.taps[layer][0])
    decomposition = decompose(getattr(net, layer), direction)
    projected = torch.einsum("bchw,c->bhw", acts[layer], direction)
    torch.testing.assert_close(decomposition.rebuild(acts[inputs]), projected, atol=1e-9, rtol=1e-9)
    channels, size = net.taps[layer][0], getattr(net, layer).weight.shape[1:]
    assert decomposition.eigenvectors.shape == (size.numel(), *size)
    useful = min(2 * channels, size.numel())  # each unit adds a matrix of rank two
    assert (decomposition.eigenvalues[useful:].abs() < 1e-9 * decomposition.eigenvalues[0].abs()).all()
    torch.testing.assert_close(decomposition.rebuild(acts[inputs], useful), projected, atol=1e-9, rtol=1e-9)


def test_all_eigenvectors_rebuild_a_logit(net, acts):
    decomposition = decompose(net.fc2, net.fc3.weight[3])
    logit = decomposition.rebuild(acts["fc1"]) + net.fc3.bias[3]
    torch.testing.assert_close(logit, acts["logits"][:, 3].double(), atol=1e-6, rtol=1e-5)  # logits are float32


def test_an_agent_in_single_precision_is_rebuilt_to_its_own_rounding(acts):
    torch.manual_seed(1)
    net = BilinearImpala().eval()
    with torch.no_grad():
        output = net(acts["frame"].permute(0, 2, 3, 1).float(), record=("pool3", "conv4a")).activations
    direction = torch.zeros(32)
    direction[7] = 1
    rebuilt = decompose(net.conv4a, direction).rebuild(output["pool3"])
    torch.testing.assert_close(rebuilt.float(), output["conv4a"][:, 7], atol=1e-5, rtol=1e-5)


def test_one_channel_has_two_eigenvectors_in_closed_form(net):
    """Of (w v^T + v w^T) / 2 the eigenvalues are (w . v +- |w| |v|) / 2."""
    channel = torch.zeros(32, dtype=torch.float64)
    channel[5] = 1
    decomposition = decompose(net.conv3a, channel)
    w, v = net.conv3a.weight[5].flatten(), net.conv3a.weight[32 + 5].flatten()
    pair = torch.stack([w @ v + w.norm() * v.norm(), w @ v - w.norm() * v.norm()]) / 2
    expected = pair[pair.abs().argsort(descending=True)]
    torch.testing.assert_close(decomposition.eigenvalues[:2], expected)
    assert decomposition.eigenvalues[2:].abs().max() < 1e-12
    first = w / w.norm() + (v / v.norm() if expected[0] > 0 else -v / v.norm())
    cosine = torch.cosine_similarity(first, decomposition.eigenvectors[0].flatten(), 0)
    torch.testing.assert_close(cosine.abs(), torch.tensor(1.0, dtype=torch.float64))


def test_eigenvectors_are_orthonormal_sorted_and_of_one_sign(net):
    decomposition = decompose(net.fc1, random_direction(256))
    vectors = decomposition.eigenvectors
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(512, dtype=torch.float64), atol=1e-10, rtol=0)
    assert (decomposition.eigenvalues.abs().diff() <= 0).all()
    assert (vectors.gather(1, vectors.abs().argmax(1, keepdim=True)) > 0).all()


def test_components_are_squares_that_add_up(net, acts):
    decomposition = decompose(net.conv2b, random_direction(32))
    components = decomposition.components(acts["conv2a"], rank=3)
    naive = functional.conv2d(acts["conv2a"], decomposition.eigenvectors[:3], padding=2).square()
    torch.testing.assert_close(components, naive * decomposition.eigenvalues[:3].view(1, 3, 1, 1))
    linear = decomposition.rebuild(acts["conv2a"], rank=0)
    torch.testing.assert_close(decomposition.rebuild(acts["conv2a"], rank=3), linear + components.sum(1))


def test_at_rank_zero_the_linear_and_constant_parts_remain(net):
    """They are the layer's value and gradient where its input is zero."""
    direction = random_direction(512)
    decomposition = decompose(net.fc2, direction)
    left, right = net.fc2.bias.chunk(2)
    torch.testing.assert_close(decomposition.constant, (direction * left * right).sum())
    inputs = torch.zeros(1, 256, dtype=torch.float64, requires_grad=True)
    a, b = functional.linear(inputs, net.fc2.weight, net.fc2.bias).chunk(2, 1)
    (a * b @ direction).sum().backward()
    torch.testing.assert_close(decomposition.linear, inputs.grad[0])


def test_the_largest_truncation_error_falls_with_the_rank_and_is_reached(net, acts):
    direction = random_direction(512)
    decomposition = decompose(net.fc2, direction)
    inputs = acts["fc1"]
    exact = acts["fc2"] @ direction
    lengths = inputs.square().sum(1)
    bounds = [decomposition.largest_error(rank) for rank in range(257)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > 0
    assert bounds[-1] == 0
    for rank in (0, 1, 4, 16, 64, 200):
        errors = (decomposition.rebuild(inputs, rank) - exact).abs()
        assert (errors <= bounds[rank] * lengths + 1e-9).all(), rank
        worst = decomposition.eigenvectors[rank : rank + 1]
        error = (decomposition.rebuild(worst, rank) - decomposition.rebuild(worst)).abs().item()
        assert error == pytest.approx(bounds[rank], rel=1e-9)


def test_a_direction_over_maps_splits_into_channels_and_positions(net, acts):
    """A probe on the flattened tap, rebuilt from one decomposition for each part."""
    shape = net.taps["conv4a"]
    probe = random_direction(32 * 8 * 8).view(shape)
    channels, positions = split_direction(probe)
    torch.testing.assert_close(torch.einsum("kc,khw->chw", channels, positions), probe)
    torch.testing.assert_close(channels @ channels.T, torch.eye(len(channels), dtype=torch.float64), atol=1e-9, rtol=0)
    sizes = positions.flatten(1).norm(dim=1)
    assert (sizes.diff() <= 0).all()
    projected = acts["conv4a"].flatten(1) @ probe.flatten()
    parts = [
        torch.einsum("bhw,hw->b", decompose(net.conv4a, direction).rebuild(acts["pool3"]), where)
        for direction, where in zip(channels[:2], positions[:2], strict=True)
    ]
    rest = torch.einsum("kc,khw->chw", channels[2:], positions[2:])
    torch.testing.assert_close(sum(parts) + acts["conv4a"].flatten(1) @ rest.flatten(), projected)


def test_wrong_directions_and_ranks_are_refused(net):
    with pytest.raises(ValueError, match=r"\(64,\).*32 units"):
        decompose(net.conv4a, torch.ones(64))
    with pytest.raises(ValueError, match="finite"):
        decompose(net.conv4a, torch.full((32,), torch.nan))
    with pytest.raises(ValueError, match="rank 148 must lie in 0 to 147"):
        decompose(net.conv1a, torch.ones(16)).rebuild(torch.zeros(1, 3, 64, 64), rank=148)
    with pytest.raises(ValueError, match="channels height width"):
        split_direction(torch.ones(2048))
    with pytest.raises(ValueError, match="read no colours"):
        filter_images(decompose(net.conv2a, torch.ones(32)).eigenvectors[:1])


def test_eigenfilters_of_the_first_layer_are_drawn(net):
    images = filter_images(torch.tensor([[[[-0.5]], [[0.0]], [[0.25]]]]))
    assert images[0].tolist() == [[[0, 128, 191]]]
    channel = torch.zeros(16)
    channel[0] = 1  # one eigenvector of each sign
    decompositions = [decompose(net.conv1a, channel), decompose(net.conv1a, torch.ones(16))]
    drawn = draw_eigenfilters(decompositions, ["channel 0", "all channels"], number=2)
    assert drawn.dtype == torch.uint8
    assert drawn.shape[2] == 3
