import math

import pytest
import torch

from interpretability.image_objectives import LayerDirection, Response, Unit, difference, likeness
from networks import CustomCNN, SparseAutoencoder


def frames() -> torch.Tensor:
    return torch.rand(4, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def test_objectives_are_what_their_formulas_say() -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    vector = torch.randn(32)
    objectives = [
        Unit(3),
        Unit(5, (2, 7)),
        LayerDirection(vector, (1, 4), cosine_power=2.0),
        difference(8, 9, 32),
    ]
    with torch.no_grad():
        driven = Response(agent, "conv4a", objectives, None, "fp32").driven(frames())
        acts = agent(frames(), record=("conv4a",)).activations["conv4a"]
    here = acts[2, :, 1, 4]
    along = vector @ here
    cosine = along / (vector.norm() * here.norm())
    wanted = [acts[0, 3].mean(), acts[1, 5, 2, 7], along * cosine.clamp(min=0.1) ** 2, (acts[3, 8] - acts[3, 9]).mean()]
    torch.testing.assert_close(driven.goal, torch.stack(wanted))
    torch.testing.assert_close(driven.maps[3], acts[3, 8] - acts[3, 9])


def test_a_unit_may_be_driven_down() -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    with torch.no_grad():
        response = Response(agent, "conv4a.pre", [Unit(3, sign=-1), Unit(5, (2, 7), -1)], None, "fp32")
        driven, highest = response.driven(frames()[:2], leak=0.1), response.highest(frames())
        acts = agent(frames(), record=("conv4a.pre",)).activations["conv4a.pre"]
    torch.testing.assert_close(driven.goal, -torch.stack([acts[0, 3].mean(), acts[1, 5, 2, 7]]))
    torch.testing.assert_close(driven.gain, driven.goal)
    torch.testing.assert_close(highest, -torch.stack([acts[:, 3].min(), acts[:, 5, 2, 7].min()]))


def test_logits_values_and_latents_are_units_too() -> None:
    torch.manual_seed(0)
    agent, sae = CustomCNN().eval(), SparseAutoencoder(32, 2)
    with torch.no_grad():
        output = agent(frames(), record=("conv4a",))
        latents = sae.encode(output.activations["conv4a"])
        logit = Response(agent, "logits", [Unit(7)] * 4, None, "fp32").driven(frames()).goal
        value = Response(agent, "value", [Unit(0)] * 4, None, "fp32").driven(frames()).goal
        latent = Response(agent, "conv4a", [difference(60, 1, 64)] * 4, sae, "fp32").driven(frames()).maps
    torch.testing.assert_close(logit, output.logits[:, 7])
    torch.testing.assert_close(value, output.value)
    torch.testing.assert_close(latent, latents[:, 60] - latents[:, 1])


def test_what_leaks_is_only_what_is_wanted() -> None:
    """A silent unit that is wanted pulls by its pre-activation; one that is to be silent is left in peace."""
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    with torch.no_grad():
        record = ("conv4a.pre", "conv4a")
        acts = agent(frames()[:1], record=record).activations
        before, after = acts["conv4a.pre"][0], acts["conv4a"][0]
        silent = (before < 0).nonzero()
        channel, y, x = silent[0].tolist()
        other = next(int(c) for c in range(32) if before[c, y, x] < 0 and c != channel)
        driven = Response(agent, "conv4a", [difference(channel, other, 32, (y, x))], None, "fp32").driven(
            frames()[:1], leak=0.1
        )
    assert after[channel, y, x] == after[other, y, x] == 0
    torch.testing.assert_close(driven.gain[0], 0.1 * before[channel, y, x])
    assert driven.goal[0] == 0


def test_silent_places_count_by_how_near_they_are_to_firing() -> None:
    """Against a loop: places weigh e times as much for each standard deviation of the pre-activation over places."""
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    record = ("conv4a.pre", "conv4a")
    with torch.no_grad():
        acts = agent(frames(), record=record).activations
        driven = Response(agent, "conv4a", [Unit(number) for number in range(4)], None, "fp32").driven(
            frames(), leak=0.1
        )
    for row in range(4):
        before, after = (acts[name][row, row].flatten().tolist() for name in record)
        spread = torch.tensor(before).std(correction=0).item()
        weight = [math.exp((value - max(before)) / spread) if value <= 0 else 0.0 for value in before]
        assert 0 < sum(value <= 0 for value in before) <= 64
        pull = sum(w * value for w, value in zip(weight, before, strict=True)) / sum(weight)
        silent = sum(value <= 0 for value in before) / 64
        assert driven.gain[row].item() == pytest.approx(sum(after) / 64 + 0.1 * silent * pull, rel=1e-4)


def test_likeness_is_the_mean_cosine_of_gram_matrices() -> None:
    channels = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    grams = [(part.flatten(1) @ part.flatten(1).T).flatten() for part in channels]

    def cosine(i: int, j: int) -> torch.Tensor:
        return torch.cosine_similarity(grams[i], grams[j], dim=0)

    found = likeness(channels, [[0, 2, 3], [1]])
    wanted = [(cosine(0, 2) + cosine(0, 3)) / 2, torch.zeros(()), (cosine(2, 0) + cosine(2, 3)) / 2]
    torch.testing.assert_close(found[:3], torch.stack(wanted))


def test_what_does_not_exist_is_named() -> None:
    agent = CustomCNN().eval()
    for objective, match in [
        (Unit(32), "conv4a has 32 units"),
        (Unit(0, (8, 0)), "maps of 8 x 8"),
        (LayerDirection(torch.ones(31)), "conv4a has 32 units"),
        (LayerDirection(torch.ones(32), cosine_power=-1.0), "at least 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            Response(agent, "conv4a", [objective], None, "fp32")
    with pytest.raises(ValueError, match="name at least one"):
        Response(agent, "conv4a", [], None, "fp32")
    with pytest.raises(ValueError, match="numbered from 0"):
        difference(0, 32, 32)
