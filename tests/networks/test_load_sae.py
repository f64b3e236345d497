import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from networks import CustomCNN, ResidualImpala, SparseAutoencoder, load_agent, load_sae, read_weights, save_weights


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """An agent's file and that of an autoencoder trained on it."""
    agent = tmp_path / "agent.safetensors"
    agent_hash = save_weights(agent, CustomCNN(), {})
    sae = SparseAutoencoder(32, expansion=2)
    sae.set_normalisation(torch.randn(32), torch.tensor(0.7))
    metadata = {"kind": "SparseAutoencoder", "tap": "conv4a", "agent_hash": agent_hash, "metrics": {"sae/l0": 2.5}}
    save_weights(tmp_path / "sae.safetensors", sae, metadata)
    return agent, tmp_path / "sae.safetensors"


def test_round_trip(saved: tuple[Path, Path]) -> None:
    agent = load_agent(saved[0])
    sae = load_sae(saved[1], agent)
    assert isinstance(sae, SparseAutoencoder)
    assert (sae.tap, sae.in_channels, sae.num_latents, sae.training) == ("conv4a", 32, 64, False)
    assert sae.metadata["metrics"] == {"sae/l0": 2.5}
    assert sae.scale == torch.tensor(0.7)  # the normalisation is part of it
    frames = torch.rand(1, 64, 64, 3)
    assert agent(frames, edits=[(sae.tap, sae)]).logits.isfinite().all()


def test_refuses_another_agent(saved: tuple[Path, Path], tmp_path: Path) -> None:
    save_weights(tmp_path / "other.safetensors", CustomCNN(), {})
    with pytest.raises(ValueError, match="trained on another agent"):
        load_sae(saved[1], load_agent(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"this one has none.* leave sae null; where there is allow_other_agent"):
        load_sae(saved[1], CustomCNN())


def test_takes_another_agent_if_told_to_but_only_where_the_tap_fits(saved: tuple[Path, Path]) -> None:
    assert load_sae(saved[1], CustomCNN(), allow_other_agent=True).tap == "conv4a"
    other = CustomCNN()
    other.taps = {**other.taps, "conv4a": (16, 8, 8)}
    with pytest.raises(ValueError, match="32 channels, but conv4a of this agent has 16"):
        load_sae(saved[1], other, allow_other_agent=True)
    for allowed in (False, True):
        with pytest.raises(ValueError, match=r"this ResidualImpala has no tap 'conv4a': .* leave sae null"):
            load_sae(saved[1], ResidualImpala(), allow_other_agent=allowed)


def test_refuses_what_is_no_autoencoder(saved: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="no sparse autoencoder"):
        load_sae(saved[0])
    with pytest.raises(ValueError, match="SparseAutoencoder"):
        load_agent(saved[1])


def test_a_file_saved_by_hand_has_to_name_its_tap(tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    save_weights(path, SparseAutoencoder(32), {"kind": "SparseAutoencoder"})
    with pytest.raises(ValueError, match=r"of which tap .* 'tap' in its metadata"):
        load_sae(path)


def test_a_file_from_before_there_were_kinds_loads(saved: tuple[Path, Path]) -> None:
    tensors, metadata = read_weights(saved[1])
    assert set(tensors) == {"encoder_weight", "encoder_bias", "decoder_weight", "decoder_bias", "mean", "scale"}
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    texts["config"] = json.dumps({"in_channels": 32, "expansion": 2, "kernel_size": 1})
    save_file(tensors, saved[1], texts)
    old = load_sae(saved[1])
    assert isinstance(old, SparseAutoencoder)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in old.state_dict().items())


def test_a_file_of_a_later_version_is_named(saved: tuple[Path, Path]) -> None:
    tensors, metadata = read_weights(saved[1])
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    texts["config"] = json.dumps({**metadata["config"], "colour": "blue"})
    save_file(tensors, saved[1], texts)
    with pytest.raises(ValueError, match=r"SparseAutoencoder.*colour"):
        load_sae(saved[1])
