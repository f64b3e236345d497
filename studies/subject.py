"""What a study looks at: an agent, and perhaps an autoencoder of one of its taps."""

import re
from typing import NamedTuple

import torch

from networks import SAEBase, TappedAgent, load_agent, load_sae


class Subject(NamedTuple):
    """An agent and the tap that is looked at.

    Attributes:
        agent: frozen, in eval mode.
        tap: of the agent.
        sae: an autoencoder of that tap, likewise frozen; None looks at the tap's own units.
    """

    agent: TappedAgent
    tap: str
    sae: SAEBase | None


def choose_device(device: str) -> torch.device:
    """The device of that name; for `auto` a GPU if there is one.

    Raises:
        ValueError: another name, or a GPU that this machine does not have.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {device!r} is none that a study runs on: choose auto, cpu or cuda")
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not there: choose auto or cpu")
    return chosen


def load_subject(agent: str, sae: str | None, tap: str | None, device: torch.device) -> Subject:
    """Load an agent and, where a path is given, an autoencoder, whose tap need not be named.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that is not the autoencoder's, that the agent does
            not have, or that nothing names.
    """
    loaded = load_agent(agent).to(device).eval().requires_grad_(False)
    if sae is None:
        if tap is None:
            raise ValueError("nothing says where the units are: give tap, or sae")
        loaded.check_taps([tap])
        return Subject(loaded, tap, None)
    autoencoder = load_sae(sae, loaded).to(device).eval().requires_grad_(False)
    if tap not in (None, autoencoder.tap):
        raise ValueError(f"tap is {tap!r}, the autoencoder's is {autoencoder.tap!r}: leave tap null")
    loaded.check_taps([autoencoder.tap])
    return Subject(loaded, autoencoder.tap, autoencoder)
