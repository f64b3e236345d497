import runpy
from pathlib import Path

import torch

from networks import CustomCNN, SparseAutoencoder, load_agent, save_weights

SCRIPT = Path(__file__).parents[2] / "docs/first_look.py"


def test_the_notebook_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    torch.manual_seed(0)
    agent_file, sae_file = tmp_path / "agent.safetensors", tmp_path / "sae.safetensors"
    save_weights(agent_file, CustomCNN(), {})
    agent = load_agent(agent_file)
    metadata = {"kind": "SparseAutoencoder", "tap": "conv4a", "agent_hash": agent.weights_hash}
    save_weights(sae_file, SparseAutoencoder(32), metadata)

    runpy.run_path(str(SCRIPT), init_globals={"AGENT": str(agent_file), "SAE": str(sae_file)})

    said = capsys.readouterr().out
    assert "the next thing to fetch is the" in said
    assert said.count("with probability") == 3
    assert (tmp_path / "first_look.png").stat().st_size > 10_000
