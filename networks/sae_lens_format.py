"""SAELens's folder, `sae_weights.safetensors` with `cfg.json`, written and read without SAELens.

In it (SAELens 6) an activation x [d_in] has the latents f and the reconstruction

    pre = (x - b_dec) @ W_enc + b_enc        reconstruction = f @ W_dec + b_dec

and `architecture` says how f comes from pre: `standard` relu(pre); `topk` relu of the k largest; `jumprelu` pre where
it is above `threshold` and 0; `gated` relu((x - b_dec) @ W_enc * exp(r_mag) + b_mag) where (x - b_dec) @ W_enc + b_gate
is above 0. Our normalisation is folded into the weights; latents stay what they are.
"""

import json
from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from networks.batch_topk_sae import BatchTopKSAE
from networks.files import write_atomically
from networks.gated_sae import GatedSAE
from networks.jumprelu_sae import JumpReLUSAE
from networks.sae_base import SAEBase
from networks.sparse_autoencoder import SparseAutoencoder
from networks.taps import TappedNetwork
from networks.topk_sae import TopKSAE
from networks.weights import Tensors, check_origin, hash_tensors, load_into, read_weights, save_tensors

WEIGHTS_FILE = "sae_weights.safetensors"
CONFIG_FILE = "cfg.json"
_VERSION = "6.54.12"  # whose format this is; SAELens takes a folder without one for older than 6


class _Activation(NamedTuple):
    """How latents come from pre-activations, in SAELens's terms.

    Attributes:
        architecture: its name there.
        tensors: [F] each, beside W_enc, W_dec and b_dec.
        config: entries of cfg.json that only this architecture has.
    """

    architecture: str
    tensors: Tensors
    config: dict[str, Any]


def save_sae_lens(sae: SAEBase, folder: str | Path) -> None:
    """Write an autoencoder so that `sae_lens.SAE.load_from_disk(folder)` opens it.

    It reconstructs the same as in evaluation mode: BatchTopK and Matryoshka become `jumprelu` with their threshold.
    SAELens wants channels last. The metadata of the autoencoder's file go along, its tap also as `hook_name`.

    Raises:
        ValueError: the kernel is wider than 1, or the kind has no counterpart there.
        OSError: the folder cannot be written; files already there are left whole.
    """
    if sae.kernel_size != 1:
        raise ValueError(
            f"an autoencoder of kernel_size {sae.kernel_size} cannot be saved for SAELens, whose latents see one "
            "position at a time: train one with kernel_size 1"
        )
    with torch.no_grad():
        mean, scale = sae.mean.double(), sae.scale.double()
        encoder, decoder = sae.encoder_weight[:, :, 0, 0].double(), sae.decoder_weight[:, :, 0, 0].double()
        # b_dec is taken from the input before anything is multiplied, as our mean is: no digits are lost
        offset = sae.decoder_bias.double()
        activation = _activation(sae, sae.encoder_bias.double() + encoder @ offset)
        tensors = {
            "W_enc": encoder.T / scale,
            "W_dec": decoder.T * scale,
            "b_dec": offset * scale + mean,
            **activation.tensors,
        }
    config = {
        "architecture": activation.architecture,
        "d_in": sae.in_channels,
        "d_sae": sae.num_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **activation.config,
        "metadata": {
            **{name: value for name, value in sae.metadata.items() if name not in ("config", "hash", "architecture")},
            "sae_lens_version": _VERSION,
            "model_name": sae.metadata.get("agent_architecture"),
            "hook_name": sae.tap,
            "tap": sae.tap,
            "kind": type(sae).__name__,
        },
    }
    folder = Path(folder)
    save_tensors(folder / WEIGHTS_FILE, {name: tensor.float().cpu() for name, tensor in tensors.items()}, {})
    text = json.dumps(config, indent=1)
    write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(text))


def load_sae_lens(
    folder: str | Path, agent: TappedNetwork | None = None, allow_other_agent: bool = False, tap: str | None = None
) -> SAEBase:
    """Load an autoencoder from SAELens's folder, in evaluation mode, as `load_sae` loads ours.

    It reconstructs the same as in SAELens; `jumprelu` becomes JumpReLUSAE also where it was trained as BatchTopK. To
    keep it as one of our files: `save_weights("sae.safetensors", sae, sae.metadata)`.

    Args:
        folder: what `sae_lens` or `save_sae_lens` wrote.
        agent, allow_other_agent: see `load_sae`; an autoencoder that SAELens trained names no agent.
        tap: whose activations it is for; by default what cfg.json says, whose `hook_name` SAELens may leave empty.

    Raises:
        ValueError: a file is missing or damaged, the architecture or one of its settings has no counterpart here, a
            tensor does not fit, the autoencoder was trained on another agent, or nothing says of which tap it is.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG_FILE)
    tensors, _ = read_weights(folder / WEIGHTS_FILE)
    sae = _build({name: tensor.float() for name, tensor in tensors.items()}, config, folder)
    metadata = config.get("metadata") or {}
    sae.tap = tap or metadata.get("tap") or metadata.get("hook_name") or ""
    sae.weights_hash = hash_tensors(sae.state_dict())
    origin = {"tap": sae.tap, "agent_hash": metadata.get("agent_hash", ""), "kind": type(sae).__name__}
    sae.metadata = metadata | origin
    if agent is not None and not sae.tap:
        raise ValueError(
            f"{folder / CONFIG_FILE} does not say for which tap it is: write one of {', '.join(agent.taps)} "
            "as hook_name into its metadata, or pass tap to load_sae_lens"
        )
    if agent is not None:
        check_origin(sae, agent, folder, allow_other_agent)
    return sae.eval()


@singledispatch
def _activation(sae: SAEBase, bias: Float[Tensor, " F"]) -> _Activation:
    """What a kind is called in SAELens; `bias` is that of its pre-activations there."""
    raise ValueError(f"{type(sae).__name__} has no counterpart in SAELens: save another kind of autoencoder")


@_activation.register
def _(sae: SparseAutoencoder, bias: Tensor) -> _Activation:
    return _Activation("standard", {"b_enc": bias}, {})


@_activation.register
def _(sae: TopKSAE, bias: Tensor) -> _Activation:
    return _Activation("topk", {"b_enc": bias}, {"k": sae.k, "rescale_acts_by_decoder_norm": False})


@_activation.register
def _(sae: BatchTopKSAE, bias: Tensor) -> _Activation:
    return _Activation("jumprelu", {"b_enc": bias, "threshold": sae.threshold.repeat(sae.num_latents)}, {})


@_activation.register
def _(sae: JumpReLUSAE, bias: Tensor) -> _Activation:
    return _Activation("jumprelu", {"b_enc": bias, "threshold": sae.log_threshold.exp()}, {})


@_activation.register
def _(sae: GatedSAE, bias: Tensor) -> _Activation:
    magnitude = sae.gain.double().exp() * bias + sae.magnitude_bias
    return _Activation("gated", {"b_gate": bias, "r_mag": sae.gain, "b_mag": magnitude}, {})


class _Kind(NamedTuple):
    """A kind of ours for an architecture of theirs.

    Attributes:
        kind: its class.
        bias: the tensor [F] that is our encoder's bias.
        further: the state dict's other entries [F], from their tensors.
    """

    kind: Callable[..., SAEBase]
    bias: str = "b_enc"
    further: Callable[[Tensors], Tensors] = lambda tensors: {}


def _log_threshold(tensors: Tensors) -> Tensors:
    """A threshold of 0 or less lets all through that is above 0: the smallest positive one does the same."""
    smallest = torch.finfo(torch.float32).tiny
    return {"log_threshold": tensors["threshold"].clamp_min(smallest).double().log().float()}


def _gate(tensors: Tensors) -> Tensors:
    magnitude = tensors["b_mag"].double() - tensors["r_mag"].double().exp() * tensors["b_gate"].double()
    return {"gain": tensors["r_mag"], "magnitude_bias": magnitude.float()}


_KINDS = {
    "standard": _Kind(SparseAutoencoder),
    "topk": _Kind(TopKSAE),
    "jumprelu": _Kind(JumpReLUSAE, further=_log_threshold),
    "gated": _Kind(GatedSAE, bias="b_gate", further=_gate),
}
_TENSORS = {
    "standard": {"b_enc"},
    "topk": {"b_enc"},
    "jumprelu": {"b_enc", "threshold"},
    "gated": {"b_gate", "b_mag", "r_mag"},
}


def _read_config(path: Path) -> dict[str, Any]:
    """cfg.json, refused unless it describes something that can be built here."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}: pass a folder that SAELens or save_sae_lens wrote") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): it was cut short or altered; copy it again") from error
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if architecture not in _KINDS:
        raise ValueError(
            f"{path} names the architecture {architecture!r}, but {', '.join(_KINDS)} can be loaded: while training, "
            "SAELens has others, so save the trained one with save_inference_model"
        )
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name, "none") != "none":
            raise ValueError(
                f"{path} has {name} {config[name]!r}, which an autoencoder of raw activations cannot have: "
                "fold it into the weights with SAELens, or train one without"
            )
    missing = [name for name in ("d_in", "d_sae", *(["k"] if architecture == "topk" else [])) if name not in config]
    if missing:
        raise ValueError(f"{path} has no {' and no '.join(missing)}: save it with SAELens 6 or later")
    if config["d_sae"] % config["d_in"]:
        raise ValueError(
            f"{path} has d_sae {config['d_sae']}, no multiple of d_in {config['d_in']}: an autoencoder here has a "
            "whole number of latents a channel"
        )
    return config


def _build(tensors: Tensors, config: Mapping[str, Any], source: Path) -> SAEBase:
    """Our autoencoder with these weights."""
    architecture, channels = config["architecture"], config["d_in"]
    wanted = {"W_enc", "W_dec", "b_dec"} | _TENSORS[architecture]
    if tensors.keys() != wanted:
        raise ValueError(
            f"{source / WEIGHTS_FILE} holds {', '.join(sorted(tensors))}, but the architecture {architecture!r} has "
            f"{', '.join(sorted(wanted))}: use the cfg.json that was saved with it"
        )
    arguments = {"k": config["k"]} if architecture == "topk" else {}
    kind, bias, further = _KINDS[architecture]
    sae = kind(channels, config["d_sae"] // channels, unit_norm_decoder=False, **arguments)
    if config.get("rescale_acts_by_decoder_norm", False):  # latents are compared as if directions had length 1
        norms = tensors["W_dec"].norm(dim=1)
        tensors |= {"W_enc": tensors["W_enc"] * norms, bias: tensors[bias] * norms}
        tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
    offset = tensors["b_dec"]
    centred = config.get("apply_b_dec_to_input", True)
    state = {
        "encoder_weight": tensors["W_enc"].T[:, :, None, None],
        "encoder_bias": tensors[bias],
        "decoder_weight": tensors["W_dec"].T[:, :, None, None],
        "decoder_bias": torch.zeros_like(offset) if centred else offset,
        "mean": offset if centred else torch.zeros_like(offset),
        "scale": torch.ones(()),
        **further(tensors),
    }
    load_into(sae, state, source / WEIGHTS_FILE)
    return sae
