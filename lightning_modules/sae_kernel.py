"""The training step of an autoencoder on a CPU, as one compiled function (`sae_kernel.cpp`).

A batch of rows keeps few latents active, so decoding and all gradients need a fraction of the dense arithmetic, which
torch's operations would do in full; where many are active, a processor's matrix tiles do it (`sae_kernel_tiles.h`). The
function is compiled on first use for the numbers of channels and latents at hand, by the C++ compiler that
`torch.compile` uses, and kept in the user's cache folder.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from networks import AnyProgress, RowTerms, SAEBase

_SOURCE = Path(__file__).with_suffix(".cpp")
_TILES = _SOURCE.with_name("sae_kernel_tiles.h")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
_NUMBERS = ("loss", "reconstruction_loss", "sparsity_loss", "train_l0", "train_explained_variance")
_POINTER: Any = ctypes.c_void_p
_FLOAT: Any = ctypes.c_float
_INT: Any = ctypes.c_int
_ARGUMENTS = [
    _POINTER,
    ctypes.c_int64,
    _POINTER,
    _FLOAT,
    *[_POINTER] * 4,
    _INT,
    _POINTER,
    _FLOAT,
    _INT,
    *[_POINTER] * 6,
]
_Four = ctypes.c_void_p * 4
_UPDATE_ARGUMENTS = [*[_POINTER] * 5, ctypes.c_bool, *[_FLOAT] * 5]


class SAEKernel:
    """Computes what `SAEObjective` does (see there), without AuxK, for float activations [B C] in the CPU's memory.

    Args:
        channels, latents: of the autoencoders that it will be given.

    Raises:
        OSError: there is no C++ compiler, or it failed.
    """

    def __init__(self, channels: int, latents: int) -> None:
        library = _build(channels, latents)
        self._function, self._update = library.sae_step, library.sae_update
        self._alike = torch.zeros(latents)

    def takes(self, sae: SAEBase, acts: Float[Tensor, "B C *HW"], progress: AnyProgress) -> RowTerms | None:
        """The kind's terms if the step can be computed here, else None."""
        if acts.ndim != 2 or acts.device.type != "cpu" or sae.kernel_size != 1:
            return None
        if any(one.dtype != torch.float32 for one in (*kernel_parameters(sae), sae.mean)):  # it reads their memory
            return None
        return sae.row_terms(progress)

    def __call__(
        self, sae: SAEBase, acts: Float[Tensor, "B C"], terms: RowTerms
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]], Int[Tensor, " F"]]:
        """The loss, what is logged of it by name, and on how many inputs each latent fired."""
        loss, numbers, fired = _Step.apply(self, sae, acts, terms, *kernel_parameters(sae))
        return loss, named(numbers, terms), fired

    def run(
        self, sae: SAEBase, acts: Float[Tensor, "B C"], terms: RowTerms
    ) -> tuple[Float[Tensor, " N"], Int[Tensor, " F"], list[Tensor]]:
        """The same without autograd, which takes as long as many inputs: all numbers (see `named`), firings, and the
        gradients of `kernel_parameters`.
        """
        acts = acts.to(torch.float32).contiguous()
        weights = [parameter.detach().contiguous() for parameter in kernel_parameters(sae)]
        gradients = [torch.empty_like(weight) for weight in weights]
        fired = torch.empty(sae.num_latents, dtype=torch.int64)
        numbers = torch.empty(len(_NUMBERS))
        coefficients = terms.coefficients
        if isinstance(coefficients, float):
            coefficients = self._alike.fill_(coefficients)
        elif coefficients is not None:
            coefficients = coefficients.to(torch.float32).contiguous()
        self._function(
            acts.data_ptr(),
            len(acts),
            sae.mean.data_ptr(),
            float(sae.scale),
            *(weight.data_ptr() for weight in weights),
            terms.k or 0,
            None if coefficients is None else coefficients.data_ptr(),
            terms.knee or 0.0,
            torch.get_num_threads(),
            *(gradient.data_ptr() for gradient in gradients),
            fired.data_ptr(),
            numbers.data_ptr(),
        )
        return numbers, fired, gradients

    def update(
        self,
        sae: SAEBase,
        gradients: Sequence[Tensor],
        averages: Sequence[Tensor],
        squares: Sequence[Tensor],
        steps: Sequence[Tensor],
        largest_norm: float,
        rate: float,
        betas: tuple[float, float],
        epsilon: float,
    ) -> None:
        """Take one step of Adam, in place. Directions that are held at length 1 keep it, and gradients are shrunk to
        `largest_norm` where all together are longer.

        Args:
            gradients: of `kernel_parameters`; may be changed.
            averages, squares, steps: of the same, as Adam keeps them; steps are float32.
            largest_norm: 0 for no limit.
            rate, betas, epsilon: Adam's.
        """
        fours = (kernel_parameters(sae), gradients, averages, squares, steps)
        tables = [_Four(*[one.data_ptr() for one in four]) for four in fours]
        self._update(*tables, sae.unit_norm_decoder, largest_norm, rate, *betas, epsilon)


def kernel_parameters(sae: SAEBase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The parameters that the kernel knows, in its order."""
    return sae.encoder_weight, sae.encoder_bias, sae.decoder_weight, sae.decoder_bias


def named(numbers: Float[Tensor, " N"], terms: RowTerms) -> dict[str, Float[Tensor, ""]]:
    """The kernel's numbers by the names under which they are logged; the first is the loss."""
    by_name = dict(zip(_NUMBERS, numbers.unbind(), strict=True))
    if terms.coefficients is None:
        del by_name["sparsity_loss"]
    return by_name


class _Step(torch.autograd.Function):
    """The gradients come with the losses: `backward` only hands them on."""

    @staticmethod
    def forward(
        ctx: Any, kernel: SAEKernel, sae: SAEBase, acts: Tensor, terms: RowTerms, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        numbers, fired, gradients = kernel.run(sae, acts, terms)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(numbers, fired)
        return numbers[0].clone(), numbers, fired

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *(gradient * of_outputs[0] for gradient in ctx.saved_tensors)


def load_kernel(channels: int, latents: int) -> SAEKernel | None:
    """The kernel, or None where it cannot be compiled, which is said once."""
    try:
        return SAEKernel(channels, latents)
    except OSError as error:
        warnings.warn(f"the fast training step on the CPU cannot be had ({error}): torch's is used", stacklevel=2)
        return None


@cache
def _build(channels: int, latents: int) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler) is None:
        raise OSError("no C++ compiler (g++ or clang++) was found")
    command = [compiler, *_FLAGS, f"-DCHANNELS={channels}", f"-DLATENTS={latents}"]
    # what is compiled for one processor may not run on another that shares the folder
    sources = (_SOURCE.read_text(), _TILES.read_text())
    made_of = (*command, *sources, platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor())
    name = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "procgen-lens"
    library = folder / f"sae_kernel_{name}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            made = Path(temporary) / library.name
            result = subprocess.run([*command, str(_SOURCE), "-o", str(made)], capture_output=True, text=True)
            if result.returncode:
                raise OSError(f"{compiler} failed: {result.stderr.strip()[-300:]}")
            made.replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.sae_step.argtypes, loaded.sae_step.restype = _ARGUMENTS, None
    loaded.sae_update.argtypes, loaded.sae_update.restype = _UPDATE_ARGUMENTS, None
    return loaded


def _processor() -> str:
    """What the processor calls its abilities, where Linux says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
