from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from networks import ResidualImpala, load_agent, save_weights
from networks.residual_impala import HalvingMaxPool


@pytest.fixture(scope="module")
def net() -> ResidualImpala:
    torch.manual_seed(0)
    return ResidualImpala(initialise_centred=False).eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Add(nn.Module):
    """An edit that carries a tensor."""

    def __init__(self, amount: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("amount", amount)

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return acts + self.amount


def described_forward(net: ResidualImpala, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The papers' description, with nothing but the weights taken from the network."""
    weights = net.state_dict()

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"].double(), weights[f"{name}.bias"].double(), padding=1)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].double().T + weights[f"{name}.bias"].double()

    x = frames.double().permute(0, 3, 1, 2) / 255
    for sequence in ("seq1", "seq2", "seq3"):
        x = functional.max_pool2d(conv(f"{sequence}.conv", x), 3, stride=2, padding=1)
        for block in ("block1", "block2"):
            inside = conv(f"{sequence}.{block}.conv1", x.relu())
            x = x + conv(f"{sequence}.{block}.conv2", inside.relu())
    x = linear("fc1", x.relu().flatten(1)).relu()
    return linear("policy_fc", x), linear("value_fc", x)[:, 0]


@torch.no_grad()
def test_forward_agrees_with_the_papers_description(net, frames):
    output = net(frames)
    logits, value = described_forward(net, frames)
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.value.double(), value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("width", "actions"), [(1, 15), (2, 15), (1, 9)])
def test_the_number_of_parameters_is_that_of_the_formula(width, actions):
    def conv(inputs: int, outputs: int) -> int:
        return 9 * inputs * outputs + outputs

    widths = [3, 16 * width, 32 * width, 32 * width]
    expected = sum(conv(a, b) + 4 * conv(b, b) for a, b in pairwise(widths))
    expected += (64 * widths[-1] + 1) * 256 + 257 * (actions + 1)
    net = ResidualImpala(actions, width)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected
    if (width, actions) == (1, 15):
        assert expected == 626_256


def test_it_begins_as_the_procgen_papers_code_does(net):
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "fc" not in name or name.startswith("fc1"):
            outputs, inputs = parameter.shape[0], parameter[0].numel()
            area = parameter[0, 0].numel()
            bound = (6 / (inputs + outputs * area)) ** 0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.abs().max() > 0.95 * bound, name
    policy = net.policy_fc.weight
    torch.testing.assert_close(policy @ policy.T, 1e-4 * torch.eye(15), atol=1e-9, rtol=1e-3)
    torch.testing.assert_close(net.value_fc.weight.norm(), torch.tensor(1.0))


@torch.no_grad()
def test_taps_are_what_their_names_say(net, frames):
    acts = net(frames, record=tuple(net.taps)).activations
    assert {name: tuple(tensor.shape[1:]) for name, tensor in acts.items()} == net.taps
    assert list(acts) == list(net.taps), "in order of computation"
    assert net.taps["seq1.conv"] == (16, 64, 64)
    assert net.taps["seq3.block2"] == (32, 8, 8)
    for name in net.taps:
        if f"{name}.pre" in net.taps:
            assert torch.equal(acts[name], acts[f"{name}.pre"].relu()), name
    for sequence in ("seq1", "seq2", "seq3"):
        for before, block in (("pool", "block1"), ("block1", "block2")):
            stream, name = acts[f"{sequence}.{before}"], f"{sequence}.{block}"
            assert torch.equal(acts[f"{name}.in.pre"], stream)
            assert torch.equal(acts[name], stream + acts[f"{name}.conv2"])
    assert torch.equal(acts["fc1.in"], acts["seq3.block2"].relu())


@torch.no_grad()
def test_an_edit_of_the_stream_passes_the_block_by_and_one_of_its_input_does_not(net, frames):
    amount = torch.randn(16, 32, 32, generator=torch.Generator().manual_seed(2))
    record = ("seq1.block1.in", "seq1.block1.conv2", "seq1.block1")
    plain = net(frames, record=record).activations
    stream = net(frames, record=record, edits=(("seq1.pool", Add(amount)),)).activations
    branch = net(frames, record=record, edits=(("seq1.block1.in.pre", Add(amount)),)).activations
    assert torch.equal(stream["seq1.block1.in"], branch["seq1.block1.in"])
    assert not torch.equal(plain["seq1.block1.in"], branch["seq1.block1.in"])
    assert torch.equal(stream["seq1.block1.conv2"], branch["seq1.block1.conv2"])
    torch.testing.assert_close(stream["seq1.block1"], branch["seq1.block1"] + amount)


@torch.no_grad()
def test_identity_edits_change_nothing_and_repeated_passes_agree(net, frames):
    plain = net(frames)
    for tap in net.taps:
        edited = net(frames, edits=((tap, nn.Identity()),))
        assert torch.equal(plain.logits, edited.logits), tap
        assert torch.equal(plain.value, edited.value), tap


@torch.no_grad()
@pytest.mark.parametrize("tap", ["seq1.block1.in", "seq2.block1.conv1", "seq2.block2"])
def test_recording_alone_stops_at_the_deepest_tap(net, frames, tap):
    seen = []
    names = {layer: name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    hooks = [layer.register_forward_hook(lambda layer, *_: seen.append(names[layer])) for layer in names]
    output = net(frames, record=("seq1.pool", tap), outputs=False)
    for hook in hooks:
        hook.remove()
    assert output.logits is None
    assert list(output.activations) == ["seq1.pool", tap]
    last = {"seq1.block1.in": "seq1.conv", "seq2.block2": "seq2.block2.conv2"}.get(tap, tap)
    order = list(names.values())
    assert seen == order[: order.index(last) + 1]


def test_the_gradient_reaches_every_parameter(net, frames):
    output = net(frames)
    (output.logits.square().sum() + output.value.sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    net.zero_grad()


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
            edits = (("seq2.block1", Add(torch.tensor(float(number)))),)
            output = compiled(frames, record=("seq2.block1", "seq3.block1.in"), edits=edits)
            expected = net(frames, record=("seq2.block1", "seq3.block1.in"), edits=edits)
            assert torch.equal(output.logits, expected.logits)
            assert torch.equal(output.activations["seq3.block1.in"], expected.activations["seq3.block1.in"])
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_it_trains_in_bf16_and_channels_last_as_one_graph(net, frames):
    """With the frontend and autograd of `torch.compile`, but no generated code, which takes a minute."""
    torch._dynamo.reset()
    fast = ResidualImpala()
    fast.load_state_dict(net.state_dict())
    fast = fast.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = torch.compile(fast, backend="aot_eager", fullgraph=True)(frames, record=("seq3.block2",))
    assert output.logits.dtype == torch.float32
    assert output.activations["seq3.block2"].is_contiguous(memory_format=torch.channels_last)
    expected = net(frames).value
    torch.testing.assert_close(output.value, expected, atol=0.05, rtol=0.05)
    output.value.sum().backward()
    expected.sum().backward()
    for mine, theirs in zip(fast.seq1.parameters(), net.seq1.parameters(), strict=True):
        assert torch.cosine_similarity(mine.grad.flatten(), theirs.grad.flatten(), 0) > 0.98
    net.zero_grad()
    torch._dynamo.reset()


def test_centred_it_begins_as_if_its_input_were_centred():
    """Away from the border, where a frame is padded with zeros before it is centred."""
    torch.manual_seed(0)
    plain = ResidualImpala(initialise_centred=False).seq1.conv
    torch.manual_seed(0)
    centred = ResidualImpala().seq1.conv
    frames_BCHW = torch.rand(2, 3, 10, 10)
    expected = plain((frames_BCHW - 0.6) / 0.2)
    torch.testing.assert_close(centred(frames_BCHW)[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_pool_is_the_same_when_compiled(dtype, memory_format):
    """Flat patches too, where several values are the greatest: the gradient goes to the same one."""
    torch._dynamo.reset()
    values = torch.randint(0, 3, (2, 4, 9, 8)).to(dtype).to(memory_format=memory_format)
    results = []
    for pool in (nn.MaxPool2d(3, stride=2, padding=1), torch.compile(HalvingMaxPool(), backend="aot_eager")):
        acts = values.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled = pool(acts)
        (pooled * torch.arange(pooled.numel()).view_as(pooled)).sum().backward()
        results.append((pooled, acts.grad))
    (pooled, grad), (pooled_compiled, grad_compiled) = results
    assert torch.equal(pooled, pooled_compiled)
    assert torch.equal(grad, grad_compiled)
    assert pooled_compiled.is_contiguous(memory_format=memory_format)
    torch._dynamo.reset()


def test_the_pool_stands_up_to_torchs_check_of_operators():
    torch.library.opcheck(torch.ops.networks.halving_max_pool.default, (torch.randn(2, 3, 7, 8, requires_grad=True),))


def test_it_comes_back_from_its_file(frames, tmp_path):
    net = ResidualImpala(num_actions=9, width_scale=2)
    save_weights(tmp_path / "agent.safetensors", net, {})
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert isinstance(loaded, ResidualImpala)
    assert loaded.config() == {"num_actions": 9, "width_scale": 2, "initialise_centred": True}
    assert loaded.taps == net.taps
    torch.testing.assert_close(loaded(frames).logits, net(frames).logits)


def test_a_width_without_channels_is_refused():
    with pytest.raises(ValueError, match="width_scale 0"):
        ResidualImpala(width_scale=0)
