import pytest
import torch
from torch import nn

from networks import CustomCNN
from networks.custom_cnn import L2Pool


def published_forward(net: CustomCNN, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network as the notes describe it, written with `nn.LPPool2d`."""
    pool = nn.LPPool2d(2, 2, 2)
    x = frames.permute(0, 3, 1, 2).double() / 255
    x = pool(net.conv1a(x).relu())
    x = net.conv2a(x).relu()
    x = pool(net.conv2b(x).relu())
    x = pool(net.conv3a(x).relu())
    x = pool(net.conv4a(x).relu())
    x = net.fc1(x.flatten(1)).relu()
    x = net.fc2(x).relu()
    return net.fc3(x), net.value_fc(x)[:, 0]


@pytest.fixture(scope="module")
def net() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_it_has_the_published_size_and_names(net):
    assert sum(parameter.numel() for parameter in net.parameters()) == 363_216
    layers = {name.split(".")[0] for name in net.state_dict()}
    assert layers == {"conv1a", "conv2a", "conv2b", "conv3a", "conv4a", "fc1", "fc2", "fc3", "value_fc"}


@torch.no_grad()
def test_forward_agrees_with_the_published_description(net, frames):
    output = net(frames)
    double = CustomCNN().double()
    double.load_state_dict(net.state_dict())
    logits, value = published_forward(double, frames)
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.value.double(), value, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(double(frames).logits.double(), logits, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_bytes_and_fractions_are_the_same_input(net, frames):
    torch.testing.assert_close(net(frames).logits, net(frames.float() / 255).logits)


def test_the_pool_is_the_root_of_the_sum_of_squares_with_a_finite_gradient():
    acts = torch.randn(2, 3, 8, 8).relu().requires_grad_()
    torch.testing.assert_close(L2Pool()(acts), nn.LPPool2d(2, 2, 2)(acts), atol=2e-6, rtol=1e-5)
    zeros = torch.zeros(1, 1, 2, 2, requires_grad=True)
    L2Pool()(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


def test_centred_initialisation_is_the_plain_one_on_a_centred_input(frames):
    torch.manual_seed(3)
    centred = CustomCNN(initialise_centred=True)
    torch.manual_seed(3)
    plain = CustomCNN(initialise_centred=False)
    images = frames.float().permute(0, 3, 1, 2) / 255
    inner = slice(3, -3)  # away from the zero padding
    a = centred.conv1a(images)[..., inner, inner]
    b = plain.conv1a((images - 0.6) / 0.2)[..., inner, inner]
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_config_builds_the_same_network(net):
    other = CustomCNN(**{**net.config(), "num_actions": 15})
    assert other.config() == net.config()
    assert other.taps == net.taps
    assert CustomCNN(num_actions=9).taps["logits"] == (9,)
