"""How an agent came about, as the metadata of its file tell it."""

from collections.abc import Mapping
from typing import Any


def parent(weights_hash: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What an agent's file says of the one that it began as: whose weights, how and how long it was trained.

    Args:
        weights_hash, metadata: of the file that training began from.
    """
    known = {name: metadata[name] for name in ("training", "env_steps", "parent") if name in metadata}
    return {"hash": weights_hash, **known}


def how_trained(metadata: Mapping[str, Any]) -> str:
    """In words: PPO from scratch and from a clone, which may think differently, are told apart.

    Args:
        metadata: of an agent's file; one that another project wrote has none.
    """
    training = str(metadata.get("training", "unknown"))
    if (before := metadata.get("parent")) is not None:
        earlier = how_trained(before)
        return earlier if earlier.split(",")[0] == training else f"{training}, begun as {earlier}"
    if training == "PPO":
        return "PPO, begun as another agent" if metadata.get("warm_started") else "PPO from scratch"
    return training


def frames_trained(metadata: Mapping[str, Any]) -> int | None:
    """Environment frames of the whole way, or None where a part of it is not known."""
    before = metadata.get("parent")
    earlier = 0 if before is None else frames_trained(before)
    own = metadata.get("env_steps")
    return None if own is None or earlier is None else int(own) + earlier
