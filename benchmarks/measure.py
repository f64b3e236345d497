"""What every benchmark shares: a clock that waits for the device, the device's arithmetic peak, and the last line."""

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def synchronise(device: torch.device) -> None:
    """Wait for what was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds spent in named parts; each part waits for the device at its end.

    Attributes:
        seconds: by name.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time counted under a name."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            synchronise(self._device)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronise(self._device)
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return wrapped


def require_peers(parser: argparse.ArgumentParser, names: Iterable[str], otherwise: str) -> None:
    """End with a usage error if a library to compare with is not installed.

    Args:
        parser: of the benchmark.
        names: of the modules that it would import.
        otherwise: what to pass to do without.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        parser.error(
            f"{', '.join(missing)} not installed: pip install -c constraints.txt -e '.[peers]', or pass {otherwise}"
        )


def peak_flops(
    device: torch.device,
    dtype: torch.dtype,
    size: int = 2048,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Floating-point operations a second of a large square matrix product: what the device can do at best."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    synchronise(device)
    count, start = 0, clock()
    while clock() - start < seconds:
        left @ right
        count += 1
        if count % 8 == 0:
            synchronise(device)
    synchronise(device)
    return count * 2 * size**3 / (clock() - start)


def machine(device: torch.device) -> str:
    """What this was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def report(**figures: Any) -> None:
    """The one JSON object on stdout."""
    print(json.dumps(figures), flush=True)
