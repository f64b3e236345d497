"""`torch.compile` where it can be had."""

import shutil
import warnings

from torch import nn


def compile_in_place(network: nn.Module, dynamic: bool = False) -> bool:
    """Compile a network's `__call__` in place, which keeps its state-dict keys; say once where that cannot be.

    On a CPU, torch generates C++ and needs a compiler: where there is none the network goes on eagerly.

    Returns:
        Whether the network is compiled.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    if on_cpu:
        try:
            found = shutil.which(get_cpp_compiler()) is not None
        except (InvalidCxxCompiler, RuntimeError):
            found = False
        if not found:
            warnings.warn("no C++ compiler (g++ or clang++) was found: the network runs eagerly", stacklevel=2)
            return False
    network.compile(dynamic=dynamic)
    return True
