"""The compiled training step against torch's own arithmetic in float64, and what happens where it cannot be had."""

import copy
import multiprocessing
import shutil
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

from lightning_modules import sae_kernel
from lightning_modules.kernel_adam import KernelAdam
from lightning_modules.sae_kernel import SAEKernel, load_kernel
from lightning_modules.sae_objective import SAEObjective
from networks import BatchTopKSAE, GatedSAE, JumpReLUSAE, Progress, RowTerms, SAEBase, SparseAutoencoder, TopKSAE

pytestmark = pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler")


def progress_of(latents: int) -> Progress:
    return Progress(torch.tensor(150.0), torch.rand(latents) * 2e-3, torch.zeros(latents, dtype=torch.bool))


def rough(sae: SAEBase) -> SAEBase:
    """Away from its tied start, with a normalisation that shows if it is left out."""
    sae.set_normalisation(torch.randn(sae.in_channels), torch.tensor(1.7))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return sae


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "sae",
    [
        pytest.param(lambda: SparseAutoencoder(32, 4, sparsity_knee=None), id="l1"),
        pytest.param(lambda: SparseAutoencoder(32, 4, sparsity_knee=0.7), id="knee"),
        pytest.param(lambda: SparseAutoencoder(32, 4, sparsity_knee=1e-3, sparsity_coefficient=50), id="small-knee"),
        pytest.param(lambda: SparseAutoencoder(5, 3, rare_frequency=None), id="odd-sizes"),
        pytest.param(lambda: SparseAutoencoder(256, 4), id="flat-tap"),
        pytest.param(lambda: TopKSAE(32, 4, k=8), id="topk"),
        pytest.param(lambda: TopKSAE(7, 3, k=20), id="topk-of-few"),
    ],
)
def test_agrees_with_autograd_in_float64(sae, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours = rough(sae())
    acts, progress = torch.randn(333, ours.in_channels), progress_of(ours.num_latents)
    exact = copy.deepcopy(ours).double()

    kernel = SAEKernel(ours.in_channels, ours.num_latents)
    terms = kernel.takes(ours, acts, progress)
    assert terms is not None
    loss, numbers, fired = kernel(ours, acts, terms)
    (3 * loss).backward()
    exact_loss, exact_numbers, exact_fired = SAEObjective(exact, None, 1)(acts.double(), progress)
    (3 * exact_loss).backward()

    assert torch.equal(fired, exact_fired)
    assert numbers.keys() == exact_numbers.keys()
    for name, number in exact_numbers.items():
        assert numbers[name].item() == pytest.approx(number.item(), rel=1e-5, abs=1e-6), name
    for (name, got), wanted in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert (got.grad - wanted.grad).norm() <= 1e-5 * wanted.grad.norm(), name


def test_several_threads_of_python_and_forks_share_its_own_threads(monkeypatch):
    sae, acts = rough(SparseAutoencoder(32, 4)), torch.randn(500, 32)
    kernel = SAEKernel(32, 128)
    terms = kernel.takes(sae, acts, progress_of(128))

    def gradients(threads: int) -> list[torch.Tensor]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return kernel.run(sae, acts, terms)[2]

    def same(got: list[torch.Tensor]) -> bool:
        return all((one - other).norm() <= 1e-5 * other.norm() for one, other in zip(got, alone, strict=True))

    alone = gradients(1)
    assert all(same(gradients(threads)) for threads in (2, 4, 3, 1, 2) * 20), "more of them, and fewer"
    time.sleep(0.01)  # they are asleep by then
    assert same(gradients(2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with ThreadPool(3) as pool:
        assert all(same(got[2]) for got in pool.map(lambda _: kernel.run(sae, acts, terms), range(60)))
    fork = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if same(gradients(2)) else 1))
    fork.start()
    fork.join(60)
    assert fork.exitcode == 0, "a fork has none of the threads of what it was forked from"


def test_topk_keeps_exactly_k_where_latents_are_equal():
    sae = TopKSAE(4, 4, k=3)
    with torch.no_grad():
        sae.encoder_weight.fill_(0.25)  # all sixteen latents see the same
    kernel, acts = SAEKernel(4, 16), torch.rand(10, 4)
    _, numbers, fired = kernel(sae, acts, kernel.takes(sae, acts, progress_of(16)))
    assert fired.sum() == 30
    assert numbers["train_l0"] == 3


@pytest.mark.parametrize("sae", [SparseAutoencoder(4, 4), TopKSAE(4, 4, k=2)])
def test_what_is_not_a_number_reaches_the_loss(sae):
    kernel, acts = SAEKernel(4, 16), torch.rand(10, 4)
    broken = torch.where(torch.arange(10)[:, None] == 7, torch.nan, acts)
    terms = kernel.takes(sae, acts, progress_of(16))
    assert kernel(sae, broken, terms)[0].isnan()
    with torch.no_grad():
        sae.encoder_weight[3] = torch.nan
    assert kernel(sae, acts, terms)[0].isnan()


def test_takes_only_what_it_knows():
    kernel, rows, maps = SAEKernel(4, 16), torch.rand(8, 4), torch.rand(8, 4, 5, 5)
    progress = progress_of(16)
    assert kernel.takes(SparseAutoencoder(4, 4), rows, progress) is not None
    assert kernel.takes(SparseAutoencoder(4, 4), maps, progress) is None
    assert kernel.takes(SparseAutoencoder(4, 4, 3), rows, progress) is None
    for other in (BatchTopKSAE(4, 4, k=2), JumpReLUSAE(4, 4), GatedSAE(4, 4)):
        assert kernel.takes(other, rows, progress) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_leaves_parameters_of_another_type_to_torch(dtype):
    """It would read and write their memory as float32."""
    sae = SparseAutoencoder(4, 4).to(dtype)
    assert SAEKernel(4, 16).takes(sae, torch.rand(8, 4), progress_of(16)) is None
    assert KernelAdam.takes(SparseAutoencoder(4, 4))
    assert not KernelAdam.takes(sae)


@pytest.mark.parametrize("step", [3, 8, 9, 500])
def test_a_penalty_that_is_the_same_for_all_is_so_bit_for_bit(step):
    """Before, at and after the end of the warm-up; the kernel gets one number instead of a tensor from then on."""
    sae = rough(SparseAutoencoder(4, 4, rare_frequency=None, sparsity_warmup_steps=10, sparsity_coefficient=0.3))
    kernel, acts = SAEKernel(4, 16), torch.rand(50, 4)
    progress = Progress(torch.tensor(float(step)), torch.full((16,), torch.nan), torch.zeros(16, dtype=torch.bool))
    terms = sae.row_terms(progress)
    assert isinstance(terms.coefficients, float) == (step >= 9)
    one_each = RowTerms(None, sae._coefficients(progress), sae.sparsity_knee)
    for got, wanted in zip(kernel.run(sae, acts, terms)[2], kernel.run(sae, acts, one_each)[2], strict=True):
        assert torch.equal(got, wanted)


def test_half_precision_activations_are_widened_first():
    sae, acts = SparseAutoencoder(4, 4), torch.rand(16, 4).bfloat16()
    kernel, progress = SAEKernel(4, 16), progress_of(16)
    terms = kernel.takes(sae, acts, progress)
    assert torch.equal(kernel(sae, acts, terms)[0], kernel(sae, acts.float(), terms)[0])


def test_is_compiled_once_into_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sae_kernel._build.cache_clear()
    SAEKernel(3, 6)
    (library,) = Path(tmp_path, "procgen-lens").iterdir()
    sae_kernel._build.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    SAEKernel(3, 6)
    assert library.suffix == ".so"


def test_without_a_compiler_there_is_a_warning_and_no_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler, message in (("no-such-compiler", "no C\\+\\+ compiler"), ("false", "false failed")):
        sae_kernel._build.cache_clear()
        monkeypatch.setenv("CXX", compiler)
        with pytest.warns(UserWarning, match=message):
            assert load_kernel(3, 6) is None
    assert not list(Path(tmp_path, "procgen-lens").iterdir())
