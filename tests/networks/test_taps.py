import pytest
import torch
from torch import nn

from networks import CustomCNN, SparseAutoencoder


class Scale(nn.Module):
    """An edit that carries a tensor, one factor a sample."""

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return acts * self.factor.view(-1, *[1] * (acts.ndim - 1))


class First(nn.Module):
    """An edit that does what none may: of the whole batch it keeps one row."""

    def forward(self, acts: torch.Tensor) -> torch.Tensor:
        return acts[:1]


@pytest.fixture(scope="module")
def net() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def computed_layers(net: CustomCNN, frames: torch.Tensor, **arguments) -> set[str]:
    """Which layers run in one pass, seen by hooks."""
    seen: set[str] = set()
    hooks = [
        layer.register_forward_hook(lambda *_, name=name: seen.add(name))
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    net(frames, **arguments)
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_taps_have_the_shapes_they_state(net, frames):
    output = net(frames, record=tuple(net.taps))
    assert {name: tuple(acts.shape[1:]) for name, acts in output.activations.items()} == net.taps
    assert net.taps["conv1a"] == (16, 64, 64)
    assert net.taps["conv4a"] == (32, 8, 8)
    for name in net.taps:
        if f"{name}.pre" in net.taps:
            torch.testing.assert_close(output.activations[name], output.activations[f"{name}.pre"].relu())


@torch.no_grad()
def test_recording_changes_nothing_and_agrees_with_hooks(net, frames):
    caught = {}
    hook = net.conv3a.register_forward_hook(lambda _, __, acts: caught.update(acts=acts.clone()))
    plain = net(frames)
    hook.remove()
    output = net(frames, record=("conv3a.pre", "logits"))
    assert torch.equal(plain.logits, output.logits)
    assert torch.equal(plain.value, output.value)
    assert torch.equal(output.activations["conv3a.pre"], caught["acts"])
    assert torch.equal(output.activations["logits"], plain.logits)


@torch.no_grad()
def test_recording_alone_stops_at_the_deepest_tap(net, frames):
    assert computed_layers(net, frames, record=("conv4a",), outputs=False) == {
        "conv1a", "conv2a", "conv2b", "conv3a", "conv4a",
    }  # fmt: skip
    assert computed_layers(net, frames, record=("conv4a", "conv1a"), outputs=False) == {
        "conv1a", "conv2a", "conv2b", "conv3a", "conv4a",
    }  # fmt: skip
    assert "fc3" in computed_layers(net, frames, record=("conv4a",))
    output = net(frames, record=("conv4a",), outputs=False)
    assert output.logits is None
    assert output.value is None


@torch.no_grad()
def test_identity_edits_change_nothing_bit_for_bit(net, frames):
    plain = net(frames)
    for tap in net.taps:
        edited = net(frames, edits=((tap, nn.Identity()),))
        assert torch.equal(plain.logits, edited.logits), tap
        assert torch.equal(plain.value, edited.value), tap


@torch.no_grad()
def test_edits_apply_in_order_per_sample_and_are_recorded(net, frames):
    factor = torch.tensor([1.0, 0.0, 2.0, 1.0])
    plain = net(frames, record=("conv4a",))
    edited = net(frames, record=("conv4a",), edits=(("conv4a", Scale(factor)), ("conv4a", Scale(factor))))
    expected = plain.activations["conv4a"] * factor.view(-1, 1, 1, 1) ** 2
    assert torch.equal(edited.activations["conv4a"], expected)
    torch.testing.assert_close(edited.logits[[0, 3]], plain.logits[[0, 3]])
    assert not torch.allclose(edited.logits[1:3], plain.logits[1:3])


def test_edits_are_differentiable(net, frames):
    factor = torch.ones(4, requires_grad=True)
    edit = Scale(torch.ones(4))
    edit.factor = factor
    net(frames, edits=(("fc1", edit),)).logits.square().sum().backward()
    assert (factor.grad != 0).all()


def test_an_unknown_tap_is_named(net, frames):
    with pytest.raises(ValueError, match=r"no tap 'conv5a'.*conv4a"):
        net(frames, record=("conv5a",))
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        net(frames, edits=(("conv9", nn.Identity()),))


def test_one_tap_that_is_not_in_a_list_is_told_from_an_unknown_one(net, frames):
    with pytest.raises(ValueError, match=r"give a list, \['conv4a'\]"):
        net(frames, record="conv4a")
    with pytest.raises(ValueError, match=r"give a list, \['conv4a'\]"):
        net.player(4, record="conv4a")


def test_frames_of_another_form_are_refused_with_the_mend(net, frames):
    refused = {
        r"pass frames\[None\]": frames[0],
        r"pass frames\.permute\(0, 2, 3, 1\)": frames.permute(0, 3, 1, 2),
        r"shape \(1, 65, 65, 3\), not \[B, 64, 64, 3\]": torch.zeros(1, 65, 65, 3),
        r"torch\.from_numpy": frames.numpy(),
        "int64: pass uint8": frames.long(),
    }
    for mend, given in refused.items():
        with pytest.raises(ValueError, match=mend):
            net(given)
    torch.testing.assert_close(net(frames.float() / 255).logits, net(frames).logits)
    wide = net(torch.zeros(1, 128, 64, 3), record=("conv4a",), outputs=False)
    assert wide.activations["conv4a"].shape == (1, 32, 16, 8), "receptive fields are found on larger pictures"


def test_an_edit_that_changes_the_shape_is_refused(net, frames):
    """The first of four rows alone would give one row of logits for four frames."""
    for tap, edit, made in (("fc1", First(), r"\(1, 256\) of \(4, 256\)"), ("conv4a", nn.Flatten(), r"\(4, 2048\) of")):
        with pytest.raises(ValueError, match=f"edit at {tap} makes {made}"):
            net(frames, edits=((tap, edit),))
    torch.testing.assert_close(
        net(frames[:1], edits=[("fc1", Scale(torch.tensor([1.0, 2.0])))]).logits,
        torch.cat([net(frames[:1], edits=[("fc1", Scale(torch.tensor([factor])))]).logits for factor in (1.0, 2.0)]),
        msg="one frame may be edited in several ways at once",
    )


@pytest.mark.parametrize("edits", [("conv4a", nn.Identity()), {"conv4a": nn.Identity()}, [nn.Identity()]])
def test_what_is_no_pair_of_tap_and_module_is_refused(net, frames, edits):
    for use in (lambda: net(frames, edits=edits), lambda: net.player(4, edits=edits)):
        with pytest.raises(ValueError, match=r"no pair of a tap and a module: give \[\('TAP', module\)"):
            use()


def test_an_autoencoder_is_spliced_in_at_its_own_tap_only(net, frames):
    """All of conv2a to conv4a have 32 channels, so that no shape would tell."""
    sae = SparseAutoencoder(32).requires_grad_(False)
    fresh = net(frames, edits=(("conv3a", sae),)).logits
    sae.tap = "conv4a"
    assert torch.isfinite(net(frames, edits=(("conv4a", sae),)).logits).all()
    with pytest.raises(ValueError, match="of conv4a, not of conv3a"):
        net(frames, edits=(("conv3a", sae),))
    sae.tap = "conv3a"
    assert torch.equal(net(frames, edits=(("conv3a", sae),)).logits, fresh)


@torch.no_grad()
def test_edits_that_differ_in_tensors_share_one_compilation(net, frames):
    """Graphs are counted with the frontend alone, which is what recompiles; a recompile limit fails the test."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(error_on_recompile=False, fail_on_recompile_limit_hit=True):
        compiled = torch.compile(net, backend=count, dynamic=False)
        for number in range(12):
            edit = Scale(torch.full((4,), float(number)))
            output = compiled(frames, record=("conv4a",), edits=(("conv3a", edit),))
            expected = net(frames, record=("conv4a",), edits=(("conv3a", edit),))
            assert torch.equal(output.logits, expected.logits)
            assert torch.equal(output.activations["conv4a"], expected.activations["conv4a"])
    assert len(graphs) == 1
    torch._dynamo.reset()


def test_an_untrained_twin_depends_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    agent = CustomCNN()
    before = torch.get_rng_state()
    one, again, other = agent.untrained(5), agent.untrained(5), agent.untrained(6)
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    assert torch.equal(one.conv1a.weight, again.conv1a.weight)
    assert not torch.equal(one.conv1a.weight, other.conv1a.weight)
    assert not torch.equal(one.conv1a.weight, agent.conv1a.weight)
    torch.manual_seed(5)
    begun = CustomCNN().conv1a.weight
    assert abs(torch.cosine_similarity(one.conv1a.weight.flatten(), begun.flatten(), 0)) < 0.3, (
        "what seed 5 trains from"
    )
