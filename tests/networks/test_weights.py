import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from networks import (
    CustomCNN,
    DecisionTransformer,
    SparseAutoencoder,
    hash_tensors,
    load_agent,
    load_network,
    read_weights,
    save_weights,
    share_encoder,
)
from networks.weights import save_tensors


@pytest.fixture(scope="module")
def net() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN()


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_agent_comes_back_with_what_was_said_of_it(net, tmp_path):
    path = tmp_path / "agents" / "a.safetensors"
    settings = {"game": "heist", "distribution_mode": "easy"}
    saved = save_weights(path, net.to(memory_format=torch.channels_last), {"environment": settings, "env_steps": 7})
    agent = load_agent(path)
    assert same(agent, net)
    assert agent.metadata["environment"] == settings
    assert agent.metadata["env_steps"] == 7
    assert agent.metadata["architecture"] == "CustomCNN"
    assert agent.weights_hash == saved == hash_tensors(net.state_dict())
    assert not agent.training
    assert list(path.parent.iterdir()) == [path]
    (path.parent / "plain").touch()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode, "others may read it, where they may at all"


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict"])
def test_a_published_state_dict_loads_by_name(net, tmp_path, wrap):
    path = tmp_path / "published.pt"
    tensors = net.state_dict()
    torch.save({wrap: tensors} if wrap else tensors, path)
    assert same(load_agent(path), net)


def test_a_bare_safetensors_file_loads_too(net, tmp_path):
    path = tmp_path / "bare.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, path)
    assert same(load_agent(path), net)


def test_every_wrong_key_and_shape_is_named(net, tmp_path):
    path = tmp_path / "wrong.pt"
    tensors = dict(net.state_dict())
    tensors["conv5a.weight"] = tensors.pop("conv4a.weight")
    tensors["fc1.bias"] = torch.zeros(128)
    torch.save(tensors, path)
    with pytest.raises(
        ValueError, match=r"missing conv4a.weight; unexpected conv5a.weight; fc1.bias is \(128,\), not \(256,\)"
    ):
        load_agent(path)


def test_missing_truncated_altered_and_foreign_files_are_refused(net, tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, net, {})
    data = path.read_bytes()
    with pytest.raises(ValueError, match="there is no file"):
        load_agent(tmp_path / "b.safetensors")
    (tmp_path / "short.safetensors").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"short\.safetensors is no whole"):
        load_agent(tmp_path / "short.safetensors")
    flipped = bytearray(data)
    flipped[-50] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    with pytest.raises(ValueError, match="was altered"):
        load_agent(tmp_path / "flipped.safetensors")
    (tmp_path / "short.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_agent(tmp_path / "short.pt")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.policy."])
def test_names_behind_one_prefix_are_told_by_it_alone(net, tmp_path, prefix):
    path = tmp_path / "wrapped.pt"
    torch.save({prefix + name: tensor for name, tensor in net.state_dict().items()}, path)
    with pytest.raises(ValueError, match=f"begins with '{prefix}', before those of CustomCNN: save") as refused:
        load_agent(path)
    assert "missing" not in str(refused.value)


def test_what_is_no_state_dict_is_refused_in_words_of_ours(net, tmp_path):
    """PyTorch's are how to have the file's code run; of a text it raises whatever it stumbles on."""
    path = tmp_path / "whole.pt"
    torch.save(net, path)
    with pytest.raises(ValueError, match=r"more than tensors by name.*save a plain state dict") as refused:
        load_agent(path)
    assert "trust" not in str(refused.value)
    path.write_text("hello world, this is no pickle\n")  # KeyError
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_agent(path)
    torch.save(net.state_dict() | {"fc3.bias": torch.tensor(1.0)}, path)
    with pytest.raises(ValueError, match=r"fc3\.bias is \(\), not \(1,\)"):
        load_agent(path)


def test_weights_under_another_suffix_are_told_so(net, tmp_path):
    torch.save({"state_dict": net.state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"weights are \.safetensors, \.pt or \.pth\); an agent of a run is its agent"):
        load_agent(tmp_path / "last.ckpt")


def test_another_architecture_or_another_kind_of_file_is_refused(net, tmp_path):
    save_weights(tmp_path / "a.safetensors", net, {})
    with pytest.raises(ValueError, match=r"a\.safetensors holds a CustomCNN, not a ResidualImpala: pass its own"):
        load_agent(tmp_path / "a.safetensors", "ResidualImpala")
    save_weights(tmp_path / "later.safetensors", net, {})
    tensors, metadata = read_weights(tmp_path / "later.safetensors")
    metadata["config"] = {"num_actions": 15, "depth": 2}
    save_tensors(tmp_path / "later.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=r"does not fit this version's CustomCNN .*'depth'.*version it was saved by"):
        load_agent(tmp_path / "later.safetensors")
    save_weights(tmp_path / "sae.safetensors", SparseAutoencoder(32), {"kind": "SparseAutoencoder", "tap": "conv4a"})
    with pytest.raises(ValueError, match="architecture 'SparseAutoencoder', which no agent in networks/ has"):
        load_agent(tmp_path / "sae.safetensors")


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_checkpoint_is_never_run(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"conv1a.weight": Payload()}, path)
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_weights(path)
    assert "code ran" not in capsys.readouterr().out


def test_not_finite_and_unknown_architectures_are_refused(net, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    tensors["fc2.bias"][3] = torch.nan
    torch.save(tensors, tmp_path / "nan.pt")
    with pytest.raises(ValueError, match=r"NaN or infinity in fc2\.bias"):
        load_agent(tmp_path / "nan.pt")
    torch.save(net.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="'ResNet'"):
        load_agent(tmp_path / "a.pt", architecture="ResNet")


def test_a_failed_save_leaves_the_old_file_whole(net, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_weights(path, net, {})
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("networks.weights.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, net, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_shared_encoder_is_read_from_the_agent_beside(net, tmp_path):
    agent, path = tmp_path / "agent.safetensors", tmp_path / "dt.safetensors"
    save_weights(agent, net, {})
    player = DecisionTransformer(width=8, depth=1, heads=2, context=2, encoder_tap="fc2", frozen_encoder=True)
    player.take_encoder(net)
    save_weights(path, player, {"training": "a test"})
    before, size = load_network(path), path.stat().st_size
    share_encoder(path, agent)
    after = load_network(path)
    assert path.stat().st_size < size - 0.9 * agent.stat().st_size
    assert after.weights_hash == before.weights_hash
    assert after.metadata["training"] == "a test"
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), name


def test_a_shared_encoder_that_is_gone_or_another_is_refused(net, tmp_path):
    agent, path, other = (tmp_path / f"{name}.safetensors" for name in ("agent", "dt", "other"))
    save_weights(agent, net, {})
    save_weights(other, CustomCNN(), {})
    player = DecisionTransformer(width=8, depth=1, heads=2, context=2, frozen_encoder=True)
    player.take_encoder(net)
    save_weights(path, player, {})
    with pytest.raises(ValueError, match="be the agent that its encoder"):
        share_encoder(path, other)
    share_encoder(path, agent)
    agent.rename(tmp_path / "away.safetensors")
    with pytest.raises(ValueError, match="keep both in one folder"):
        load_network(path)
    other.rename(agent)
    with pytest.raises(ValueError, match="other weights now"):
        load_network(path)


def test_the_hash_sees_names_shapes_types_and_values():
    base = {"a": torch.arange(6.0), "b": torch.zeros(2)}
    seen = {
        hash_tensors(base),
        hash_tensors({"a": torch.arange(6.0).view(2, 3), "b": base["b"]}),
        hash_tensors({"c": base["a"], "b": base["b"]}),
        hash_tensors({"a": base["a"].double(), "b": base["b"]}),
        hash_tensors({"a": base["a"] + 1, "b": base["b"]}),
    }
    assert len(seen) == 5
    assert hash_tensors({"b": base["b"], "a": base["a"]}) in seen
