"""What going on from a checkpoint takes besides weights: the global random numbers, and what was configured then."""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


def global_random_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's global generators, as primitives and tensors."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 - whoever uses it is to go on with it
    version, internal, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(internal), following],
    }


def set_global_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers that would have come after `global_random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys, position, has_gauss, gauss = state["numpy"]
    words = keys.numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, gauss))  # noqa: NPY002 - as above
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))


def changed_settings(there: Mapping[str, Any], here: Mapping[str, Any], fixed: Iterable[str]) -> list[str]:
    """What is configured otherwise than when a checkpoint was written, and may be: "NAME old there, new here".

    Args:
        there: settings by name as the checkpoint has them; a group of settings is a mapping of its own.
        here: as they are now.
        fixed: names, of groups or single settings, under which the saved state is of no use if they change.

    Raises:
        ValueError: a fixed setting differs; all that do are named, with both values.
    """
    old, new = dict(_flat(there)), dict(_flat(here))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    told = {name: f"{name} {old.get(name)!r} there, {new.get(name)!r} here" for name in names}
    refused = [text for name, text in told.items() if {name, name.split(".")[0]} & set(fixed)]
    if refused:
        raise ValueError(
            f"the checkpoint is of another training ({'; '.join(refused)}): resume with its own configuration, "
            "or start anew without ckpt_path"
        )
    return list(told.values())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
