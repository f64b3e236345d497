import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from safetensors.numpy import load_file, save_file

from networks import (
    BatchTopKSAE,
    CustomCNN,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    SAEBase,
    SparseAutoencoder,
    TopKSAE,
    load_agent,
    load_sae,
    load_sae_lens,
    save_sae_lens,
    save_weights,
)

Array = Float[np.ndarray, "..."]

KINDS: list[tuple[type[SAEBase], dict[str, Any], str, type[SAEBase]]] = [
    (SparseAutoencoder, {}, "standard", SparseAutoencoder),
    (TopKSAE, {"k": 5}, "topk", TopKSAE),
    (BatchTopKSAE, {"k": 5}, "jumprelu", JumpReLUSAE),
    (MatryoshkaSAE, {"k": 5}, "jumprelu", JumpReLUSAE),
    (JumpReLUSAE, {}, "jumprelu", JumpReLUSAE),
    (GatedSAE, {}, "gated", GatedSAE),
]
every_kind = pytest.mark.parametrize(("kind", "arguments", "architecture", "imported"), KINDS)


def trained(kind: type[SAEBase], arguments: dict[str, Any]) -> SAEBase:
    """An autoencoder with nothing left as it begins, on an input of another mean and scale."""
    torch.manual_seed(0)
    sae = kind(8, 4, **arguments)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if isinstance(sae, BatchTopKSAE):
            sae.threshold.fill_(0.7)
    sae.set_normalisation(3 * torch.randn(8), torch.tensor(0.4))
    sae.tap = "conv4a"
    sae.metadata = {"agent_hash": "0123", "agent_architecture": "CustomCNN", "metrics": {"sae/l0": 2.0}, "hash": "x"}
    return sae.eval()


def inputs() -> torch.Tensor:
    return 2 * torch.randn(200, 8, generator=torch.Generator().manual_seed(1)) + 1


def reconstruct_as_sae_lens(folder: Path, x: Array) -> Array:
    """What SAELens's source says that it computes from a folder, in float64."""
    w = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    config = json.loads((folder / "cfg.json").read_text())
    projected = (x - config["apply_b_dec_to_input"] * w["b_dec"]) @ w["W_enc"]
    if config["architecture"] == "gated":
        magnitudes = projected * np.exp(w["r_mag"]) + w["b_mag"]
        latents = np.maximum(magnitudes, 0) * (projected + w["b_gate"] > 0)
    else:
        pre = projected + w["b_enc"]
        norms = np.linalg.norm(w["W_dec"], axis=1) if config.get("rescale_acts_by_decoder_norm") else 1.0
        latents = np.maximum(pre * norms, 0)
        if config["architecture"] == "topk":
            latents[latents < np.sort(latents, axis=1)[:, -config["k"]][:, None]] = 0
        if config["architecture"] == "jumprelu":
            latents *= pre > w["threshold"]
        latents = latents / norms
    return latents @ w["W_dec"] + w["b_dec"]


@every_kind
def test_reconstructs_the_same_elsewhere_and_back(
    tmp_path: Path, kind: type[SAEBase], arguments: dict[str, Any], architecture: str, imported: type[SAEBase]
) -> None:
    sae, acts = trained(kind, arguments), inputs()
    save_sae_lens(sae, tmp_path / "folder")
    config = json.loads((tmp_path / "folder/cfg.json").read_text())
    assert config["architecture"] == architecture
    assert (config["d_in"], config["d_sae"]) == (8, 32)
    expected = sae(acts).detach()
    there = reconstruct_as_sae_lens(tmp_path / "folder", acts.double().numpy())
    assert np.abs(there - expected.numpy()).max() < 1e-5 * expected.abs().max()
    back = load_sae_lens(tmp_path / "folder")
    assert type(back) is imported
    assert not back.training
    torch.testing.assert_close(back(acts), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert (back.tap, back.metadata["metrics"]) == ("conv4a", {"sae/l0": 2.0})
    maps = acts.view(2, 10, 10, 8).movedim(-1, 1)
    torch.testing.assert_close(back(maps), sae(maps).detach(), rtol=0, atol=1e-5 * float(expected.abs().max()))


@every_kind
def test_sae_lens_opens_it(
    tmp_path: Path, kind: type[SAEBase], arguments: dict[str, Any], architecture: str, imported: type[SAEBase]
) -> None:
    sae_lens = pytest.importorskip("sae_lens", reason="in the extra peers")
    sae, acts = trained(kind, arguments), inputs()
    save_sae_lens(sae, tmp_path)
    theirs = sae_lens.SAE.load_from_disk(tmp_path).requires_grad_(False)
    assert (theirs.cfg.architecture(), theirs.cfg.metadata.hook_name) == (architecture, "conv4a")
    expected = sae(acts).detach()
    torch.testing.assert_close(theirs(acts), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    theirs.save_model(tmp_path / "again")
    back = load_sae_lens(tmp_path / "again")
    torch.testing.assert_close(back(acts), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rescaled", [True, False])
def test_what_sae_lens_may_be_set_to_is_kept(tmp_path: Path, centred: bool, rescaled: bool) -> None:
    save_sae_lens(trained(TopKSAE, {"k": 5}), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config |= {"apply_b_dec_to_input": centred, "rescale_acts_by_decoder_norm": rescaled, "metadata": {}}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    back = load_sae_lens(tmp_path)
    expected = reconstruct_as_sae_lens(tmp_path, inputs().double().numpy())
    assert np.abs(back(inputs()).detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max()
    assert (back.tap, back.metadata["agent_hash"]) == ("", "")


def test_a_threshold_of_0_or_less_lets_all_through(tmp_path: Path) -> None:
    save_sae_lens(trained(JumpReLUSAE, {}), tmp_path)
    tensors = load_file(tmp_path / "sae_weights.safetensors")
    tensors["threshold"][:3] = [0, -1, 0.5]
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    back = load_sae_lens(tmp_path)
    expected = reconstruct_as_sae_lens(tmp_path, inputs().double().numpy())
    assert np.abs(back(inputs()).detach().numpy() - expected).max() < 1e-5 * np.abs(expected).max()


def test_wide_kernels_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    class Other(SAEBase):
        def activate(self, pre_activations: torch.Tensor) -> torch.Tensor:
            return pre_activations.abs()

    with pytest.raises(ValueError, match="kernel_size 3"):
        save_sae_lens(SparseAutoencoder(8, kernel_size=3), tmp_path)
    with pytest.raises(ValueError, match="Other has no counterpart"):
        save_sae_lens(Other(8), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "batchtopk"}, "save_inference_model"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"d_sae": 33}, "no multiple of d_in 8"),
        ({"d_sae": 16}, "not"),
        ({"architecture": "topk", "k": 40}, "k is 40"),
        ({"architecture": "gated"}, "b_gate"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    save_sae_lens(trained(SparseAutoencoder, {}), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_sae_lens(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*cfg.json"):
        load_sae_lens(tmp_path)
    save_sae_lens(trained(SparseAutoencoder, {}), tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        load_sae_lens(tmp_path)
    save_sae_lens(trained(SparseAutoencoder, {}), tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="was altered"):
        load_sae_lens(tmp_path)


def test_a_folder_is_opened_as_a_file_is_and_must_say_its_tap(tmp_path: Path) -> None:
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    agent = load_agent(tmp_path / "agent.safetensors")
    sae = SparseAutoencoder(32, 2)
    sae.tap, sae.metadata = "conv4a", {"agent_hash": agent.weights_hash}
    save_sae_lens(sae, tmp_path / "folder")
    acts = torch.randn(5, 32)
    assert torch.equal(load_sae(tmp_path / "folder", agent)(acts), load_sae_lens(tmp_path / "folder")(acts))
    config = json.loads((tmp_path / "folder/cfg.json").read_text())
    config["metadata"] = {"hook_name": None}
    (tmp_path / "folder/cfg.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not say for which tap.* one of conv1a.pre, .*hook_name.* or pass tap"):
        load_sae(tmp_path / "folder", agent, allow_other_agent=True)
    assert load_sae_lens(tmp_path / "folder", agent, allow_other_agent=True, tap="conv3a").tap == "conv3a"
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        load_sae_lens(tmp_path / "folder", agent, allow_other_agent=True, tap="conv9")


def test_another_agents_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    agent = load_agent(tmp_path / "agent.safetensors")
    sae = SparseAutoencoder(32, 2)
    sae.tap = "conv4a"
    save_sae_lens(sae, tmp_path / "folder")
    with pytest.raises(ValueError, match="another agent"):
        load_sae_lens(tmp_path / "folder", agent)
    assert load_sae_lens(tmp_path / "folder", agent, allow_other_agent=True).tap == "conv4a"
    sae.metadata = {"agent_hash": agent.weights_hash}
    save_sae_lens(sae, tmp_path / "folder")
    back = load_sae_lens(tmp_path / "folder", agent)
    save_weights(tmp_path / "sae.safetensors", back, back.metadata)  # kept as one of our files
    again = load_sae(tmp_path / "sae.safetensors", agent)
    acts = torch.randn(5, 32)
    assert torch.equal(again(acts), back(acts))
