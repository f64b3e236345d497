import pytest
import torch
from torch import nn
from torch.nn import functional

from environments import EnvironmentSettings, VectorEnvironment
from interpretability import receptive_field
from networks import BilinearConv2d, BilinearImpala, BilinearLinear, CustomCNN, load_agent, save_weights

LAYERS = ("conv1a", "conv2a", "conv2b", "conv3a", "conv4a", "fc1", "fc2")


@pytest.fixture(scope="module")
def net() -> BilinearImpala:
    torch.manual_seed(0)
    return BilinearImpala().eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """First frames of heist."""
    environment = VectorEnvironment(EnvironmentSettings(), 16)
    _, frames, _ = environment.observe()
    environment.close()
    return torch.from_numpy(frames.copy())


class Scale(nn.Module):
    """An edit that carries a tensor."""

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return acts * self.factor


def described_forward(net: BilinearImpala, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two separate maps of each input and their product, written with CustomCNN's kernel sizes."""
    weights = {name: tensor.double() for name, tensor in net.state_dict().items()}

    def product(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        half = len(bias) // 2
        if weight.ndim == 2:
            return (x @ weight[:half].T + bias[:half]) * (x @ weight[half:].T + bias[half:])
        padding = weight.shape[-1] // 2
        left = functional.conv2d(x, weight[:half], bias[:half], padding=padding)
        return left * functional.conv2d(x, weight[half:], bias[half:], padding=padding)

    def mean_pool(x: torch.Tensor) -> torch.Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    x = frames.double().permute(0, 3, 1, 2) / 255
    x = mean_pool(product("conv1a", x))
    x = mean_pool(product("conv2b", product("conv2a", x)))
    x = mean_pool(product("conv3a", x))
    x = mean_pool(product("conv4a", x))
    x = product("fc2", product("fc1", x.flatten(1)))
    logits = x @ weights["fc3.weight"].T + weights["fc3.bias"]
    return logits, (x @ weights["value_fc.weight"].T + weights["value_fc.bias"])[:, 0]


@torch.no_grad()
def test_forward_agrees_with_the_description(net, frames):
    output = net(frames[:3])
    logits, value = described_forward(net, frames[:3])
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.value.double(), value, atol=1e-4, rtol=1e-4)


def test_it_is_custom_cnn_with_two_maps_a_layer(net):
    custom = CustomCNN()
    for name, tensor in custom.state_dict().items():
        doubled = name.split(".")[0] in LAYERS
        assert net.state_dict()[name].shape == (tensor.shape[0] * (2 if doubled else 1), *tensor.shape[1:]), name
    assert net.state_dict().keys() == custom.state_dict().keys()
    heads = 513 * 16
    assert sum(parameter.numel() for parameter in net.parameters()) == 2 * (363_216 - heads) + heads == 718_224
    assert list(net.taps) == list(custom.taps)
    for name, shape in custom.taps.items():
        assert net.taps[name] == ((2 * shape[0], *shape[1:]) if name.endswith(".pre") else shape), name
    assert receptive_field(net, "conv3a") == receptive_field(custom, "conv3a")


@torch.no_grad()
def test_a_tap_is_the_product_of_the_halves_of_the_maps_before_it(net, frames):
    acts = net(frames, record=tuple(net.taps)).activations
    for name in LAYERS:
        half = net.taps[name][0]
        assert torch.equal(acts[name], acts[f"{name}.pre"][:, :half] * acts[f"{name}.pre"][:, half:]), name
        assert (acts[name] < 0).any(), "products have both signs"


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_activations_keep_their_size_through_the_depth(frames, seed):
    torch.manual_seed(seed)
    acts = BilinearImpala()(frames, record=LAYERS).activations
    for name in LAYERS:
        size = acts[name].square().mean().sqrt().item()
        assert 0.25 < size < 4, (name, size)
        assert acts[name].std(0).mean() > 0.02, f"{name} differs between frames"


def test_gradients_keep_their_size_through_the_depth(net, frames):
    net.zero_grad()
    net(frames).value.square().mean().backward()
    relative = [
        (getattr(net, name).weight.grad.norm() / getattr(net, name).weight.norm()).item() for name in LAYERS[1:]
    ]
    assert max(relative) < 30 * min(relative), dict(zip(LAYERS[1:], relative, strict=True))
    net.zero_grad()


def test_the_gradient_reaches_every_parameter(net, frames):
    output = net(frames)
    (output.logits.square().sum() + output.value.sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(1 if parameter.ndim == 2 else None).all(), name
    net.zero_grad()


def test_centred_initialisation_is_the_plain_one_on_a_centred_input(frames):
    torch.manual_seed(3)
    centred = BilinearImpala(initialise_centred=True)
    torch.manual_seed(3)
    plain = BilinearImpala(initialise_centred=False)
    images = frames.float().permute(0, 3, 1, 2) / 255
    inner = slice(3, -3)  # away from the zero padding
    a = centred.conv1a(images)[..., inner, inner]
    b = plain.conv1a((images - 0.6) / 0.2)[..., inner, inner]
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [BilinearConv2d(4, 32, 5, padding=2), BilinearLinear(512, 256)])
def test_a_new_layer_is_a_gently_gated_linear_map(layer):
    weight, gate = (part.flatten(1) for part in layer.weight.detach().chunk(2))
    torch.testing.assert_close(weight.square().sum(1).mean(), torch.tensor(1.0), atol=0.1, rtol=0)
    torch.testing.assert_close(gate.square().sum(1).mean(), torch.tensor(0.25**2), atol=0.01, rtol=0)
    assert layer.bias.tolist() == [0.0] * len(weight) + [1.0] * len(gate)


@torch.no_grad()
def test_identity_edits_change_nothing_bit_for_bit(net, frames):
    plain = net(frames[:4])
    for tap in net.taps:
        edited = net(frames[:4], edits=((tap, nn.Identity()),))
        assert torch.equal(plain.logits, edited.logits), tap
        assert torch.equal(plain.value, edited.value), tap


@torch.no_grad()
def test_recording_alone_stops_at_the_deepest_tap(net, frames):
    seen = []
    names = {layer: name for name, layer in net.named_children()}
    hooks = [layer.register_forward_hook(lambda layer, *_: seen.append(names[layer])) for layer in names]
    output = net(frames[:2], record=("conv2b.pre", "conv1a"), outputs=False)
    for hook in hooks:
        hook.remove()
    assert output.logits is None
    assert seen == ["conv1a", "pool", "conv2a", "conv2b"]


@torch.no_grad()
def test_edits_that_differ_in_tensors_share_one_whole_graph(net, frames):
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = torch.compile(net, backend=count, dynamic=False, fullgraph=True)
        for number in range(10):
            edits = (("conv3a", Scale(torch.tensor(float(number)))),)
            output = compiled(frames[:4], record=("conv4a",), edits=edits)
            expected = net(frames[:4], record=("conv4a",), edits=edits)
            assert torch.equal(output.logits, expected.logits)
            assert torch.equal(output.activations["conv4a"], expected.activations["conv4a"])
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_it_trains_in_bf16_and_channels_last_as_one_graph(net, frames):
    """With the frontend and autograd of `torch.compile`, but no generated code, which takes a minute."""
    torch._dynamo.reset()
    fast = BilinearImpala()
    fast.load_state_dict(net.state_dict())
    fast = fast.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.compile(fast, backend="aot_eager", fullgraph=True)(frames, record=("conv4a",))
    assert output.logits.dtype == torch.float32
    assert output.activations["conv4a"].is_contiguous(memory_format=torch.channels_last)
    expected = net(frames).value
    torch.testing.assert_close(output.value, expected, atol=0.1, rtol=0.05)
    output.value.sum().backward()
    expected.sum().backward()
    mine, theirs = fast.conv1a.weight.grad.flatten(), net.conv1a.weight.grad.flatten()
    assert torch.cosine_similarity(mine, theirs, 0) > 0.98
    net.zero_grad()
    torch._dynamo.reset()


def test_it_comes_back_from_its_file(net, frames, tmp_path):
    save_weights(tmp_path / "agent.safetensors", net, {})
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert isinstance(loaded, BilinearImpala)
    assert loaded.config() == net.config() == {"num_actions": 15, "initialise_centred": True}
    torch.testing.assert_close(loaded(frames).logits, net(frames).logits)
