import numpy as np
import pytest
import torch

from interpretability.unit_effects import unit_effects
from networks import CustomCNN, SparseAutoencoder


@pytest.fixture(scope="module")
def agent() -> CustomCNN:
    torch.manual_seed(0)
    return CustomCNN().eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (12, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tap", ["conv4a", "fc1"])
def test_a_channels_effect_is_that_of_setting_it_to_zero(agent: CustomCNN, frames: torch.Tensor, tap: str) -> None:
    class Zeroed(torch.nn.Module):
        def forward(self, acts: torch.Tensor) -> torch.Tensor:
            acts = acts.clone()
            acts[:, 5] = 0
            return acts

    chosen = [torch.tensor([], dtype=torch.long)] * agent.taps[tap][0]
    chosen[5] = torch.tensor([1, 4, 7])
    found = unit_effects(agent, tap, frames, chosen, precision="fp32")
    with torch.no_grad():
        clean, edited = agent(frames[[1, 4, 7]]).logits, agent(frames[[1, 4, 7]], edits=[(tap, Zeroed())]).logits
    expected = (clean - edited).mean(0)
    np.testing.assert_allclose(found[5], expected - expected.mean(), atol=1e-5)
    assert np.isnan(found[4]).all()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_latents_effect_is_that_of_its_part_alone(agent: CustomCNN, frames: torch.Tensor, kernel_size: int) -> None:
    torch.manual_seed(1)
    sae = SparseAutoencoder(32, 2, kernel_size)

    class Less(torch.nn.Module):
        def forward(self, acts: torch.Tensor) -> torch.Tensor:
            latents = sae.encode(acts)
            without = latents.clone()
            without[:, 9] = 0
            return acts - (sae.decode(latents) - sae.decode(without))

    chosen = [torch.arange(len(frames)) for _ in range(64)]
    found = unit_effects(agent, "conv4a", frames, chosen, sae=sae, precision="fp32")
    with torch.no_grad():
        expected = (agent(frames).logits - agent(frames, edits=[("conv4a", Less())]).logits).mean(0)
    np.testing.assert_allclose(found[9], expected - expected.mean(), atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_a_channel_that_falls_below_zero_one_side_is_taken_out(
    agent: CustomCNN, frames: torch.Tensor, sign: int
) -> None:
    class OneSide(torch.nn.Module):
        def forward(self, acts: torch.Tensor) -> torch.Tensor:
            acts = acts.clone()
            acts[:, 5][sign * acts[:, 5] > 0] = 0
            return acts

    chosen = [torch.arange(len(frames) if unit == 5 else 0) for unit in range(32)]
    found = unit_effects(agent, "conv3a.pre", frames, chosen, sign=sign, precision="fp32")  # type: ignore[arg-type]
    with torch.no_grad():
        expected = (agent(frames).logits - agent(frames, edits=[("conv3a.pre", OneSide())]).logits).mean(0)
    np.testing.assert_allclose(found[5], expected - expected.mean(), atol=1e-5)
    assert (np.abs(found[5]).max() > 1e-4) == (sign > 0)  # what follows the ReLU alone
