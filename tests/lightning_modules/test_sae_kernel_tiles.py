"""The compiled training step where many latents are active, by matrix tiles, against torch's arithmetic in float64."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_modules import sae_kernel
from lightning_modules.sae_kernel import SAEKernel
from lightning_modules.sae_objective import SAEObjective
from networks import Progress, SAEBase, SparseAutoencoder, TopKSAE

pytestmark = [
    pytest.mark.skipif("amx_bf16" not in sae_kernel._processor().split(), reason="the processor has no AMX"),
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler"),
]
Kernel = Callable[[int, int], SAEKernel]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def without_tiles(monkeypatch) -> Kernel:
    def make(channels: int, latents: int) -> SAEKernel:
        with monkeypatch.context() as patch:
            patch.setattr(sae_kernel, "_FLAGS", (*sae_kernel._FLAGS, "-mno-amx-bf16"))
            sae_kernel._build.cache_clear()
            kernel = SAEKernel(channels, latents)
        sae_kernel._build.cache_clear()
        return kernel

    return make


def progress_of(latents: int) -> Progress:
    return Progress(torch.tensor(150.0), torch.rand(latents) * 2e-3, torch.zeros(latents, dtype=torch.bool))


def rough(sae: SAEBase, bias: float) -> SAEBase:
    sae.set_normalisation(torch.randn(sae.in_channels), torch.tensor(1.7))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        sae.encoder_bias.add_(bias * sae.in_channels**0.5)
    return sae


KINDS = [
    pytest.param(lambda *sizes: SparseAutoencoder(*sizes, sparsity_knee=None), id="l1"),
    pytest.param(lambda *sizes: SparseAutoencoder(*sizes, sparsity_knee=0.7), id="knee"),
    pytest.param(lambda *sizes: SparseAutoencoder(*sizes, sparsity_knee=1e-6, sparsity_coefficient=50), id="tiny-knee"),
    pytest.param(lambda *sizes: TopKSAE(*sizes, k=8), id="topk"),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bias", [-1.5, 0.0], ids=["few", "many"])
@pytest.mark.parametrize(("channels", "expansion"), [(3, 4), (32, 4), (33, 4), (64, 8)])
@pytest.mark.parametrize("sae", KINDS)
def test_agrees_with_autograd_in_float64(sae, channels, expansion, bias, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours = rough(sae(channels, expansion), bias)
    acts, progress = torch.randn(700, channels), progress_of(ours.num_latents)  # blocks of 128 rows, and some rows left
    exact = copy.deepcopy(ours).double()

    loss, numbers, fired = SAEKernel(channels, ours.num_latents)(ours, acts, ours.row_terms(progress))
    loss.backward()
    exact_loss, exact_numbers, exact_fired = SAEObjective(exact, None, 1)(acts.double(), progress)
    exact_loss.backward()

    assert torch.equal(fired, exact_fired)
    for name, number in exact_numbers.items():
        assert numbers[name].item() == pytest.approx(number.item(), rel=1e-5, abs=1e-6), name
    for (name, got), wanted in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert (got.grad - wanted.grad).norm() <= 1e-5 * wanted.grad.norm(), name


@pytest.mark.parametrize(("sae", "bias", "uses_tiles"), [
    (lambda: SparseAutoencoder(32, 4), 0.0, True),
    (lambda: SparseAutoencoder(32, 4), -1.5, False),
    (lambda: TopKSAE(32, 4, k=8), 0.0, False),
])  # fmt: skip
def test_tiles_are_used_where_many_latents_are_active_and_repeat_bit_for_bit(sae, bias, uses_tiles, without_tiles):
    ours = rough(sae(), bias)
    acts, terms = torch.randn(1024, 32), ours.row_terms(progress_of(128))
    plain = without_tiles(32, 128).run(ours, acts, terms)
    kernel = SAEKernel(32, 128)
    once, again = kernel.run(ours, acts, terms), kernel.run(ours, acts, terms)
    assert torch.equal(once[1], plain[1])
    assert torch.equal(once[0], again[0])
    for one, two, without in zip(once[2], again[2], plain[2], strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, without, rtol=1e-3, atol=1e-4)
    assert torch.equal(once[2][0], plain[2][0]) != uses_tiles


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 300])
def test_any_number_of_rows(rows, without_tiles):
    ours = rough(SparseAutoencoder(10, 13), 0.0)
    acts, terms = torch.randn(rows, 10), ours.row_terms(progress_of(130))
    got, wanted = (kernel.run(ours, acts, terms) for kernel in (SAEKernel(10, 130), without_tiles(10, 130)))
    assert torch.equal(got[1], wanted[1])
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)
    for one, other in zip(got[2], wanted[2], strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("knee", [None, 1.0])
def test_what_is_not_a_number_reaches_the_loss(knee):
    sae, kernel = SparseAutoencoder(32, 4, sparsity_knee=knee), SAEKernel(32, 128)
    acts, terms = torch.rand(256, 32), sae.row_terms(progress_of(128))
    assert kernel(sae, acts, terms)[0].isfinite()
    for broken in (torch.nan, torch.inf):
        spoilt = acts.clone()
        spoilt[7, 3] = broken
        assert not kernel(sae, spoilt, terms)[0].isfinite()
    with torch.no_grad():
        sae.encoder_weight[3] = torch.nan
    assert kernel(sae, acts, terms)[0].isnan()


def test_the_header_is_part_of_what_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in (sae_kernel._SOURCE, sae_kernel._TILES):
        shutil.copy(name, tmp_path / name.name)
        monkeypatch.setattr(sae_kernel, "_SOURCE" if name == sae_kernel._SOURCE else "_TILES", tmp_path / name.name)
    for text in ("", "\n// changed\n"):
        with sae_kernel._TILES.open("a") as file:
            file.write(text)
        sae_kernel._build.cache_clear()
        SAEKernel(3, 6)
    sae_kernel._build.cache_clear()
    assert len(list(Path(tmp_path, "procgen-lens").iterdir())) == 2
