import pytest
import torch

from interpretability.signed_taps import falls_below_zero
from networks import BilinearImpala, CustomCNN, ResidualImpala, SparseAutoencoder


@pytest.mark.parametrize("kind", [CustomCNN, ResidualImpala, BilinearImpala])
def test_taps_behind_a_relu_and_their_pools_are_never_below_zero(kind) -> None:
    torch.manual_seed(0)
    agent = kind().eval()
    signed = {
        CustomCNN: lambda tap: tap.endswith(".pre") or tap in ("logits", "value"),
        # of the residual network its stream, convolutions before a ReLU and the heads; bilinear ones everywhere
        ResidualImpala: lambda tap: not (tap.endswith((".in", "block1.conv1", "block2.conv1")) or tap == "fc1"),
        BilinearImpala: lambda tap: True,
    }[kind]
    state = torch.random.get_rng_state()
    assert [tap for tap in agent.taps if falls_below_zero(agent, tap)] == [tap for tap in agent.taps if signed(tap)]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_latents_are_never_below_zero_and_an_unknown_tap_is_named() -> None:
    agent = CustomCNN().eval()
    assert not falls_below_zero(agent, "conv4a.pre", SparseAutoencoder(32, 1))
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        falls_below_zero(agent, "conv9")
