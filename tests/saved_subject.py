"""An agent and an autoencoder of it, saved with random weights: what studies are tried on."""

from pathlib import Path

import torch

from networks import CustomCNN, SparseAutoencoder, load_agent, save_weights


def save_subject(folder: Path, expansion: int = 2, tap: str = "conv4a") -> dict[str, str]:
    """Paths: `agent`, `sae` (of one of its taps), and `cache`, a folder for caches."""
    torch.manual_seed(0)
    paths = {name: str(folder / f"{name}.safetensors") for name in ("agent", "sae")}
    save_weights(paths["agent"], CustomCNN(), {})
    agent = load_agent(paths["agent"])
    origin = {"tap": tap, "agent_hash": agent.weights_hash}
    save_weights(
        paths["sae"], SparseAutoencoder(agent.taps[tap][0], expansion), {"kind": "SparseAutoencoder", **origin}
    )
    return {**paths, "cache": str(folder / "cache")}
