"""The compiled step of Adam against torch's own, with all that ConvSAE does around it."""

import copy
import shutil

import pytest
import torch
from torch import nn

from lightning_modules.kernel_adam import KernelAdam
from lightning_modules.sae_kernel import SAEKernel
from networks import GatedSAE, SAEBase, SparseAutoencoder, TopKSAE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler")


def set_gradients(saes: list[SAEBase], seed: int) -> None:
    for sae in saes:
        generator = torch.Generator().manual_seed(100 + seed)  # not the seed of the weights
        for parameter in sae.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def torch_step(sae: SAEBase, optimiser: torch.optim.Adam, largest_norm: float | None) -> None:
    if sae.unit_norm_decoder:
        sae.project_decoder_gradient()
    if largest_norm is not None:
        nn.utils.clip_grad_norm_(sae.parameters(), largest_norm)
    optimiser.step()
    if sae.unit_norm_decoder:
        sae.normalise_decoder()


@pytest.mark.parametrize("largest_norm", [None, 1.0, 1e6])
@pytest.mark.parametrize("make", [lambda: SparseAutoencoder(32, 4), lambda: TopKSAE(5, 3, k=2)])
def test_steps_as_torch_does_and_goes_on_from_its_state(make, largest_norm):
    torch.manual_seed(0)
    ours = make()
    theirs = copy.deepcopy(ours)
    fast = KernelAdam(SAEKernel(ours.in_channels, ours.num_latents), ours, 1e-2)
    plain = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    fast.largest_norm = largest_norm
    for step in range(6):
        if step == 3:  # each goes on from the other's checkpoint
            states = copy.deepcopy(fast.state_dict()), copy.deepcopy(plain.state_dict())
            fast.load_state_dict(states[1])
            plain.load_state_dict(states[0])
        set_gradients([ours, theirs], step)
        fast.step()
        torch_step(theirs, plain, largest_norm)
        for (name, got), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6, msg=f"{name} at step {step}")


def test_calls_the_closure_with_gradients_on_and_waits_for_some():
    sae = SparseAutoencoder(4, 4)
    optimiser = KernelAdam(SAEKernel(4, 16), sae, 1e-2)
    before = copy.deepcopy(sae.state_dict())
    assert optimiser.step(lambda: torch.is_grad_enabled()) is True
    assert all(torch.equal(before[name], value) for name, value in sae.state_dict().items())


def test_takes_only_what_the_kernel_knows():
    assert KernelAdam.takes(TopKSAE(4, 4, k=2))
    assert not KernelAdam.takes(GatedSAE(4, 4))
    frozen = SparseAutoencoder(4, 4)
    frozen.decoder_weight.requires_grad_(False)
    assert not KernelAdam.takes(frozen)


def test_goes_on_after_its_state_and_weights_were_moved_or_changed():
    """As a checkpoint, resampling or `module.to` leave them: nothing of an earlier step is remembered."""
    torch.manual_seed(0)
    ours = SparseAutoencoder(5, 3)
    theirs = copy.deepcopy(ours)
    fast, plain = KernelAdam(SAEKernel(5, 15), ours, 1e-2), torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for step in range(4):
        if step == 2:
            for sae, optimiser in ((ours, fast), (theirs, plain)):
                for parameter in sae.parameters():
                    parameter.data = parameter.data.clone()
                    state = optimiser.state[parameter]
                    state["exp_avg"] = state["exp_avg"].clone()
                    state["exp_avg_sq"][1:3] = 0
        set_gradients([ours, theirs], step)
        fast.step()
        plain.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert fast.state[one]["step"] == plain.state[other]["step"] == 4
        assert not fast.state[one]["exp_avg"].requires_grad


def test_hooks_are_called_and_gradients_forgotten():
    sae = SparseAutoencoder(4, 4)
    optimiser, calls = KernelAdam(SAEKernel(4, 16), sae, 1e-2), []
    optimiser.register_step_pre_hook(lambda *_: calls.append("before"))
    optimiser.register_step_post_hook(lambda *_: calls.append("after"))
    set_gradients([sae], 0)
    optimiser.step()
    assert calls == ["before", "after"]
    optimiser.zero_grad(set_to_none=False)
    assert all(not parameter.grad.any() for parameter in sae.parameters())
    optimiser.zero_grad()
    assert all(parameter.grad is None for parameter in sae.parameters())
