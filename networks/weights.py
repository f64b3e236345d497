"""Saving and loading weights: safetensors with a hash, published state dicts by name, never unpickling code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

import networks
from networks.files import write_atomically
from networks.linear_readout import LinearReadout
from networks.sae_base import SAEBase
from networks.taps import ENCODER, TappedAgent, TappedNetwork

Tensors = dict[str, Tensor]

_ENCODER = f"{ENCODER}agent."


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted names, shapes, types and bytes of tensors: safetensors itself checks none of them."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_weights(path: str | Path, module: nn.Module, metadata: Mapping[str, Any]) -> str:
    """Write a module's state dict as safetensors, atomically, and return its hash.

    The metadata are stored as JSON strings under their own names, with `hash`, and `architecture` and `config` where
    the module has them.

    Raises:
        OSError: the disk is full or the folder cannot be written; a file already there is left whole.
    """
    known = dict(metadata)
    config = getattr(module, "config", None)
    if callable(config):
        known |= {"architecture": type(module).__name__, "config": config()}
    return save_tensors(path, module.state_dict(), known)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors by name as safetensors with their hash, as `save_weights` does, and return it; raises likewise."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    known = {**metadata, "hash": hash_tensors(whole)}
    texts = {name: json.dumps(value) for name, value in known.items()}
    write_atomically(path, lambda partial: save_file(whole, partial, texts))
    return known["hash"]


def read_weights(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and metadata of a `.safetensors` file or of a plain state dict in a `.pt` or `.pth` file.

    Raises:
        ValueError: the file is missing, cut short, altered, or holds more than tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: check the path, shipped weights lie in pretrained/")
    if path.suffix in (".pt", ".pth"):
        return _read_state_dict(path), {}
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            texts = file.metadata() or {}
    except SafetensorError as error:
        kept = "an agent of a run is its agent.safetensors" if path.suffix == ".ckpt" else "copy it again"
        raise ValueError(
            f"{path} is no whole safetensors file ({error}): it was cut short or is of another kind (weights are "
            f".safetensors, .pt or .pth); {kept}"
        ) from error
    metadata = {}
    for name, text in texts.items():
        try:
            metadata[name] = json.loads(text)
        except json.JSONDecodeError:
            metadata[name] = text
    if "hash" in metadata and metadata["hash"] != hash_tensors(tensors):
        raise ValueError(f"{path} was altered after it was saved (its hash does not match): copy it again")
    return tensors, metadata


def _read_state_dict(path: Path) -> Tensors:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each have their own for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnpicklingError):  # torch tells how to run the file's code
            reason = "it holds more than tensors by name, or is no file of torch.save"
        raise ValueError(
            f"{path} cannot be read as weights ({reason}): save a plain state dict, torch.save(net.state_dict(), ...)"
        ) from error
    for wrapper in ("state_dict", "model_state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{path} holds no plain state dict: save one with torch.save(net.state_dict(), ...)")
    return dict(loaded)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy tensors into a module by name.

    Raises:
        ValueError: names every missing, unexpected and wrongly shaped tensor.
    """
    own = module.state_dict()
    first = next(iter(own), "")
    prefix = next((name.removesuffix(first) for name in tensors if name.endswith(f".{first}")), "")
    if prefix and {name.removeprefix(prefix) for name in tensors} == own.keys():
        raise ValueError(
            f"every name in {source} begins with {prefix!r}, before those of {type(module).__name__}: save the state "
            "dict of the inner module, or take that off the names"
        )
    wrong = [f"missing {name}" for name in own if name not in tensors]
    wrong += [f"unexpected {name}" for name in tensors if name not in own]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"the weights in {source} do not fit {type(module).__name__}: {'; '.join(wrong)}")
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(
            f"the weights in {source} hold NaN or infinity in {', '.join(bad)}: take an earlier checkpoint"
        )
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()})


def load_agent(path: str | Path, architecture: str | None = None) -> TappedAgent:
    """Load an agent, in evaluation mode and channels_last, with its `weights_hash` and `metadata` as attributes.

    Args:
        path: what `save_weights` wrote, or a published state dict (`.pt`, `.safetensors`) with CustomCNN's names.
        architecture: class name in `networks`; by default the file's own, CustomCNN where it names none.

    Raises:
        ValueError: the file is missing, cut short or altered, its architecture is unknown or no agent's, or a tensor
            does not fit.
    """
    agent = load_network(path, architecture)
    if not isinstance(agent, TappedAgent):
        raise ValueError(
            f"{path} holds a {agent.architecture}, which needs to know what went before a frame: pass an agent"
        )
    return agent


def load_network(path: str | Path, architecture: str | None = None) -> TappedNetwork:
    """Load an agent or a decision transformer, as `load_agent` does.

    Raises:
        ValueError: the file is missing, cut short or altered, its architecture is unknown, or a tensor does not fit.
    """
    tensors, metadata = read_weights(path)
    if "encoder_file" in metadata:
        tensors |= _encoder_beside(Path(path), metadata)
    name = architecture or metadata.get("architecture", "CustomCNN")
    if name != metadata.get("architecture", name):
        raise ValueError(f"{path} holds a {metadata['architecture']}, not a {name}: pass its own architecture or none")
    kind = getattr(networks, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, TappedNetwork)):
        raise ValueError(f"{path} is of the architecture {name!r}, which no agent in networks/ has: pass an agent's")
    config = metadata.get("config", {})
    if "config" not in metadata and "fc3.bias" in tensors:
        config = {"num_actions": tensors["fc3.bias"].numel()}
    try:
        network = kind(**config)
    except TypeError as error:
        raise ValueError(
            f"{path} does not fit this version's {name} ({error}): use the architecture and version it was saved by"
        ) from error
    load_into(network, tensors, path)
    network.weights_hash = hash_tensors(tensors)
    network.metadata = metadata
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    return network.eval()


def share_encoder(path: str | Path, agent: str | Path) -> None:
    """Leave a frozen encoder out of a decision transformer's file: `load_network` then reads it from the agent's file
    beside it.

    Raises:
        ValueError: a file that is missing, lies in another folder, or holds another encoder's weights than the agent's.
    """
    path, agent = Path(path), Path(agent)
    tensors, metadata = read_weights(path)
    whole, _ = read_weights(agent)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(_ENCODER)}
    own = {name.removeprefix(_ENCODER): tensor for name, tensor in tensors.items() if name not in kept}
    same = own.keys() == whole.keys() and all(torch.equal(own[name], whole[name].to(own[name].dtype)) for name in own)
    if not same or path.parent.resolve() != agent.parent.resolve():
        raise ValueError(f"{agent} must lie beside {path} and be the agent that its encoder, frozen, was taken from")
    save_tensors(path, kept, metadata | {"encoder_file": agent.name, "encoder_hash": hash_tensors(whole)})


def _encoder_beside(path: Path, metadata: Mapping[str, Any]) -> Tensors:
    """The encoder that `share_encoder` left out of a file."""
    agent = path.parent / str(metadata["encoder_file"])
    if not agent.is_file():
        raise ValueError(f"{path} takes its encoder from {agent}, which is not there: keep both in one folder")
    tensors, _ = read_weights(agent)
    if hash_tensors(tensors) != metadata["encoder_hash"]:
        raise ValueError(f"{path} takes its encoder from {agent}, which holds other weights now: copy both again")
    return {f"{_ENCODER}{name}": tensor for name, tensor in tensors.items()}


def load_sae(path: str | Path, agent: TappedNetwork | None = None, allow_other_agent: bool = False) -> SAEBase:
    """Load a sparse autoencoder, in evaluation mode, with its `tap`, `weights_hash` and `metadata` as attributes.

    Args:
        path: what a training run wrote as `sae.safetensors`, or a folder that `load_sae_lens` reads.
        agent: the agent it is to be spliced into, to be checked against the one it was trained on.
        allow_other_agent: take it for an agent that it was not trained on, where only the tap has to fit.

    Raises:
        ValueError: the file is missing, cut short or altered, holds no autoencoder, a tensor does not fit, or the
            autoencoder was trained on another agent.
    """
    if Path(path).is_dir():
        return networks.load_sae_lens(path, agent, allow_other_agent)
    tensors, metadata = read_weights(path)
    name = metadata.get("kind")
    kind = getattr(networks, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SAEBase)):
        raise ValueError(f"{path} holds no sparse autoencoder that networks/ knows (kind {name!r}): pass another file")
    if "tap" not in metadata:
        raise ValueError(f"{path} does not say of which tap it is: save it with 'tap' in its metadata")
    try:
        sae = kind(**metadata["config"])
    except TypeError as error:
        raise ValueError(
            f"{path} does not fit this version's {name} ({error}): use the version it was saved by"
        ) from error
    load_into(sae, tensors, path)
    sae.tap, sae.weights_hash, sae.metadata = metadata["tap"], hash_tensors(tensors), metadata
    if agent is not None:
        check_origin(sae, agent, path, allow_other_agent)
    return sae.eval()


def check_origin(sae: SAEBase, agent: TappedNetwork, source: str | Path, allow_other_agent: bool = False) -> None:
    """Refuse an autoencoder for an agent that it was not trained on, or whose tap it does not fit.

    Raises:
        ValueError: says which, and what to do.
    """
    if sae.tap not in agent.taps:
        raise ValueError(
            f"{source} is for another agent, as this {agent.architecture} has no tap {sae.tap!r}: take an autoencoder "
            "that was trained on this agent, or leave sae null"
        )
    trained_on = sae.metadata.get("agent_hash", "")
    if trained_on != agent.weights_hash and not allow_other_agent:
        raise ValueError(
            f"{source} was trained on another agent (hash {trained_on[:12] or 'unknown'}, "
            f"this one has {agent.weights_hash[:12] or 'none'}): load that agent, train one on this agent, or "
            "leave sae null; where there is allow_other_agent, it can be set instead"
        )
    channels = agent.taps[sae.tap][0]
    if channels != sae.in_channels:
        raise ValueError(
            f"{source} has {sae.in_channels} channels, but {sae.tap} of this agent has {channels}: load another agent"
        )


def load_readout(path: str | Path, agent: TappedNetwork | None = None) -> LinearReadout:
    """Load what a probe has learnt of one tap, in evaluation mode.

    Args:
        path: what a run wrote as `probes/FORM_TAP.safetensors`.
        agent: the agent it is to be used on, to be checked against the one it was fitted to.

    Raises:
        ValueError: the file is missing, cut short or altered, holds no readout, or was fitted to another agent.
    """
    tensors, metadata = read_weights(path)
    if metadata.get("architecture") != LinearReadout.__name__:
        raise ValueError(f"{path} holds no linear readout: give a file from a run's folder probes/")
    readout = LinearReadout(**metadata["config"])
    load_into(readout, tensors, path)
    if agent is not None and metadata.get("agent_hash") != agent.weights_hash:
        raise ValueError(f"{path} was fitted to another agent: load that agent, or fit probes to this one")
    return readout.eval()
