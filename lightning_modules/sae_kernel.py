"""The training step of an autoencoder on a CPU, as one compiled function (`sae_kernel.cpp`).

A batch of rows keeps few latents active, so decoding and all gradients need a fraction of the dense arithmetic, which
torch's operations would do in full. The function is compiled on first use for the numbers of channels and latents at
hand, by the C++ compiler that `torch.compile` uses, and kept in the user's cache folder.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from networks import Progress, RowTerms, SAEBase

_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")
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


class SAEKernel:
    """Computes what `SAEObjective` does (see there), without AuxK, for float activations [B C] in the CPU's memory.

    Args:
        channels, latents: of the autoencoders that it will be given.

    Raises:
        OSError: there is no C++ compiler, or it failed.
    """

    def __init__(self, channels: int, latents: int) -> None:
        self._function = _build(channels, latents)

    def takes(self, sae: SAEBase, acts: Float[Tensor, "B C *HW"], progress: Progress) -> RowTerms | None:
        """The kind's terms if the step can be computed here, else None."""
        if acts.ndim != 2 or acts.device.type != "cpu" or sae.kernel_size != 1:
            return None
        return sae.row_terms(progress)

    def __call__(
        self, sae: SAEBase, acts: Float[Tensor, "B C"], terms: RowTerms
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]], Int[Tensor, " F"]]:
        """The loss, what is logged of it by name, and on how many inputs each latent fired."""
        parameters = (sae.encoder_weight, sae.encoder_bias, sae.decoder_weight, sae.decoder_bias)
        loss, losses, fired = _Step.apply(self._function, sae, acts, terms, *parameters)
        numbers = {"loss": loss.detach(), "reconstruction_loss": losses[0]}
        if terms.coefficients is not None:
            numbers["sparsity_loss"] = losses[1]
        numbers["train_l0"] = fired.sum() / len(acts)
        numbers["train_explained_variance"] = 1 - losses[0] / sae.in_channels
        return loss, numbers, fired


class _Step(torch.autograd.Function):
    """The gradients come with the losses: `backward` only hands them on."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., None], sae: SAEBase, acts: Tensor, terms: RowTerms, *parameters: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        acts = acts.to(torch.float32).contiguous()
        weights = [parameter.detach().contiguous() for parameter in parameters]
        gradients = [torch.empty_like(weight) for weight in weights]
        fired = torch.empty(sae.num_latents, dtype=torch.int64)
        losses = torch.empty(2, dtype=torch.float64)
        coefficients = None if terms.coefficients is None else terms.coefficients.to(torch.float32).contiguous()
        function(
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
            losses.data_ptr(),
        )
        losses = losses.to(torch.float32)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses, fired)
        return losses.sum(), losses, fired

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
def _build(channels: int, latents: int) -> Callable[..., None]:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler) is None:
        raise OSError("no C++ compiler (g++ or clang++) was found")
    command = [compiler, *_FLAGS, f"-DCHANNELS={channels}", f"-DLATENTS={latents}"]
    # what is compiled for one processor may not run on another that shares the folder
    made_of = (*command, _SOURCE.read_text(), platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor())
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
    function = ctypes.CDLL(str(library)).sae_step
    function.argtypes, function.restype = _ARGUMENTS, None
    return function


def _processor() -> str:
    """What the processor calls its abilities, where Linux says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
