import numpy as np
import torch

from environments import EnvironmentSettings, render_states
from interpretability.episodes import first_states
from interpretability.unit_responses import LATENTS, PIXELS, unit_responses
from networks import CustomCNN, SparseAutoencoder

SETTINGS = EnvironmentSettings("heist", "easy")


def test_reads_every_state_as_one_pass_would_have_it(monkeypatch):
    monkeypatch.setattr("interpretability.unit_responses._AT_ONCE", 2)
    torch.manual_seed(0)
    agent = CustomCNN()
    sae = SparseAutoencoder(32)
    sae.tap = "conv4a"
    states = first_states(range(5), SETTINGS)
    rows_seen = []

    def read(acts: torch.Tensor, rows: slice) -> torch.Tensor:
        rows_seen.extend(range(rows.start, rows.stop))
        return acts.flatten(1).view(len(acts), acts.shape[1], -1).sum(2)

    found = unit_responses(agent, states, SETTINGS, ["conv3a", "fc1", PIXELS], read, sae=sae)
    frames = torch.from_numpy(render_states(states, SETTINGS))
    with torch.no_grad():
        acts = agent.eval().forward(frames, record=["conv3a", "conv4a", "fc1"], outputs=False).activations
        latents = sae.encode(acts["conv4a"])
    np.testing.assert_allclose(found["conv3a"], acts["conv3a"].sum((2, 3)).numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found["fc1"], acts["fc1"].numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[LATENTS], latents.sum((2, 3)).numpy(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found[PIXELS], (frames / 255).sum((1, 2)).numpy(), rtol=1e-4)
    assert sorted(rows_seen) == sorted(list(range(5)) * 4)
