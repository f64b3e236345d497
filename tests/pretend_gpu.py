"""Every shipped configuration and study on a GPU that is not there: `python -m tests.pretend_gpu [NAME ...]`.

Tensors that say they lie on cuda:0 are held in CPU memory. What CUDA refuses is refused: operands on two devices, a
generator of the other device, a GPU's tensor given to numpy. So a device that was forgotten somewhere is found without
a GPU. Not shown: speed, compiled code, inference mode, several GPUs, and whatever CUDA computes otherwise than a CPU.

Needs g++ and Python's headers. No test of the suite: it leans on torch's inner workings (2.13 is tried).
"""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch


def _register_cuda() -> None:
    """Build pretend_gpu.cpp and load it; torch looks for CUDA once, while it is imported."""
    assert "torch" not in sys.modules, "torch is there already: start this module by itself"
    found = importlib.util.find_spec("torch")
    assert found is not None, "torch is not installed here"
    assert found.origin is not None
    torch_folder, built = Path(found.origin).parent, Path(tempfile.mkdtemp()) / "pretended_cuda.so"
    includes = [torch_folder / "include", sysconfig.get_path("include")]
    libraries = [f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch_folder}/lib"]
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", *(f"-isystem{folder}" for folder in includes)]
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run(["g++", *flags, str(source), "-o", str(built), *libraries], check=True)
    spec = importlib.util.spec_from_file_location("pretended_cuda", built)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


_register_cuda()

import torch  # noqa: E402
import yaml  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten  # noqa: E402

GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_DOING_NOTHING = (
    *("_lazy_init", "set_device", "synchronize", "empty_cache"),
    *("manual_seed", "manual_seed_all", "set_rng_state", "set_rng_state_all"),
)
_WITHOUT_A_NETWORK = ("scenarios",)  # what need not do anything on a GPU
_counted = 0


class GPUTensor(torch.Tensor):
    """A tensor on the GPU, that is a CPU's with another name."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "GPUTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=GPU,
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operation, args, kwargs or {})

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> Any:  # safetensors copies to the CPU by itself
        return self.held.untyped_storage()

    def storage(self) -> Any:
        return self.held.storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> "GPUTensor":
        if id(self) not in memo:
            copied = GPUTensor(self.held.detach().clone())
            copied.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True  # what makes it an nn.Parameter
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().clone().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"{self.held!r} on {self.device}"


class _Generator(torch.Generator):
    """A generator; those of the GPU are remembered, for operations are given another object of the same generator."""

    on_gpu: ClassVar[dict[int, torch.Generator]] = {}

    def __new__(cls, device: torch.device | str = "cpu") -> "_Generator":
        made = super().__new__(cls, "cpu")
        if torch.device(device).type == GPU.type:
            cls.on_gpu[made._cdata] = made
        return made


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """One operation: refused as CUDA would, else done on the CPU, its results where CUDA would have them."""
    global _counted
    if operation is _aten.record_stream.default:
        return None
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, torch.Tensor)]
    on_gpu = [each for each in tensors if isinstance(each, GPUTensor)]
    on_cpu = [each for each in tensors if not isinstance(each, GPUTensor)]
    given = kwargs.get("device")
    target = None if given is None else torch.device(given).type
    if on_gpu and on_cpu and operation not in _COPIES:
        _refuse_mixed(operation, args, tensors)
    if operation is _aten.copy_.default:
        results_on_gpu = isinstance(args[0], GPUTensor)
    else:
        results_on_gpu = bool(on_gpu) if target is None else target == GPU.type
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in _Generator.on_gpu) != results_on_gpu:
        raise RuntimeError(f"{operation}: its generator is on another device")
    if target is not None:
        kwargs = {**kwargs, "device": "cpu"} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    _counted += bool(on_gpu)
    flat, spec = tree_flatten((args, kwargs))
    here_args, here_kwargs = tree_unflatten([e.held if isinstance(e, GPUTensor) else e for e in flat], spec)
    names = {id(each.held): each for each in on_gpu} | {id(each): each for each in on_cpu}  # what works in place

    def named(result: Any) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        return names.get(id(result), GPUTensor(result) if results_on_gpu else result)

    return tree_map(named, operation(*here_args, **here_kwargs))


def _refuse_mixed(operation: Any, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Numbers may lie on the CPU, and so may the indices of what lies on the GPU."""
    wrong = [each for each in tensors if not isinstance(each, GPUTensor) and each.dim() > 0]
    if operation in _INDEXING and isinstance(args[0], GPUTensor):
        wrong = [each for each in wrong if len(args) > 2 and each is args[2]]
    if wrong:
        said = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device, found {said}")


def _no_grad(mode: Any = True) -> Any:
    """In place of inference mode, in which composite operations are not taken apart."""
    return {True: torch.no_grad, False: torch.enable_grad}[mode]() if isinstance(mode, bool) else torch.no_grad()(mode)


@contextmanager
def pretended() -> Iterator[None]:
    """One GPU for whoever asks torch."""
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Callable[..., Any]] = {
        **{name: lambda *_: None for name in _DOING_NOTHING},  # one function each: torch has rules by function
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "none",
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": lambda *_: state,
        "get_rng_state_all": lambda: [state],
        "memory_stats": lambda *_: {},
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch, "inference_mode", _no_grad))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda self, *_: self))
        stack.enter_context(patch.object(torch, "compile", lambda model, **_: model))
        stack.enter_context(patch.object(torch.nn.Module, "compile", lambda self, *_, **__: None))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device) goes by way of the CPU, and so by _run
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # module.to(device) makes other parameters
        stack.enter_context(_Dispatch())
        yield


def check_the_instrument() -> None:
    """What CUDA refuses is refused here, and what it takes is taken."""
    there, here = torch.ones(3, device=GPU), torch.ones(3)
    refused: dict[str, Callable[[], Any]] = {
        "two devices": lambda: there + here,
        "an index on the GPU of what is on the CPU": lambda: here[there.long()],
        "numpy": lambda: there.numpy(),
        "a generator": lambda: torch.rand(2, generator=torch.Generator(), device=GPU),
        "the other generator": lambda: torch.rand(2, generator=torch.Generator(GPU)),
        "a layer": lambda: torch.nn.Linear(3, 3)(there),
    }
    for name, refusal in refused.items():
        try:
            refusal()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError(f"not refused: {name}")
    layer = torch.nn.Linear(3, 3).to(GPU)
    layer(there * 2 + torch.tensor(1.0))[here.long().clamp(max=2)].square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device == GPU
    assert torch.rand(2, generator=torch.Generator(GPU), device=GPU).cpu().numpy().shape == (2,)


def main(names: list[str]) -> int:
    """Run the named configurations (`sae_conv4`) and studies (`studies/watch`), or all; the exit code.

    One fails by an exception, by an exit code, or by having done nothing on the GPU.
    """
    with pretended():
        check_the_instrument()
        import analyse
        import train
        from tests.small_configs import ROOT, save_networks, shrink, shrink_study

        analyse.USER_ERRORS = train.USER_ERRORS = ()  # the whole traceback
        files = [ROOT / "configs" / f"{name}.yaml" for name in names]
        patterns = ("configs/*.yaml", "configs/studies/*.yaml")
        files = files or [file for pattern in patterns for file in sorted(ROOT.glob(pattern))]
        sys.argv = ["train.py"]
        failed = []
        for file in files:
            os.chdir(tempfile.mkdtemp(prefix=f"{file.stem}_"))
            save_networks()
            small, before, began = Path(file.name), _counted, time.monotonic()
            code: Any = 1
            try:
                if file.parent.name == "studies":
                    values = yaml.safe_load(file.read_text())
                    shrink_study(values["study"])
                    small.write_text(yaml.safe_dump(values))
                    code = analyse.main(["--config", str(small)])
                else:
                    arguments = shrink(file)
                    values = yaml.safe_load(small.read_text())
                    values["trainer"] |= {"accelerator": "gpu", "inference_mode": False}
                    small.write_text(yaml.safe_dump(values))
                    code = train.main(arguments)
            except (Exception, SystemExit):
                traceback.print_exc()
            operations = _counted - before
            if code or not (operations or file.stem in _WITHOUT_A_NETWORK):
                failed.append(file.stem)
            done = {"operations_on_gpu": operations, "seconds": round(time.monotonic() - began)}
            print(json.dumps({"name": file.stem, "failed": file.stem in failed, **done}), flush=True)
    print(json.dumps({"run": len(files), "failed": failed}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
