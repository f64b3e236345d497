"""`torch.compile` where it can be had."""

import shutil
import warnings

import torch
from torch import nn


def compile_in_place(network: nn.Module, device: torch.device | None = None) -> bool:
    """Compile a network's `__call__` in place, which keeps its state-dict keys; say once where that cannot be.

    It stays one graph under `DistributedDataParallel` too, as it is in play: torch would cut it there, to send
    gradients sooner, which these small networks have few of, and the two could round differently.

    On a CPU, torch generates C++ and needs a compiler: where there is none the network goes on eagerly.

    Args:
        network: what to compile.
        device: where it is going to run; where its parameters lie if None.

    Returns:
        Whether the network is compiled.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    devices = [parameter.device for parameter in network.parameters()] if device is None else [device]
    if all(one.type == "cpu" for one in devices):
        try:
            found = shutil.which(get_cpp_compiler()) is not None
        except (InvalidCxxCompiler, RuntimeError):
            found = False
        if not found:
            warnings.warn("no C++ compiler (g++ or clang++) was found: the network runs eagerly", stacklevel=2)
            return False
    torch._dynamo.config.optimize_ddp = False
    network.compile(dynamic=False)
    return True
