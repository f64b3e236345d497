"""How an agent came about, as the metadata of its file tell it."""

import warnings
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


def training_levels(metadata: Mapping[str, Any], count: int, path: str) -> range:
    """The first level seeds of those that an agent was trained on.

    Args:
        metadata: of the agent's file.
        count: how many.
        path: of the file, for the error.

    Raises:
        ValueError: the file does not say, or they are fewer.
    """
    environment: Any = metadata.get("environment")
    try:
        start, known = int(environment["start_level"]), int(environment["num_levels"])
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{path} does not say on which levels it was trained (environment): play others") from None
    if not 1 <= count <= known:
        raise ValueError(f"{count} levels of training asked for: {path} was trained on {known}")
    return range(start, start + count)


def warn_of_another_game(metadata: Mapping[str, Any], game: str, distribution_mode: str) -> None:
    """Say so where an agent is to play another game, or another difficulty of it, than its file says that it was
    trained on: every number would be there, and mean little.

    Args:
        metadata: of the agent's file; one that another project wrote says nothing of the game.
        game: that it is to play.
        distribution_mode: its difficulty.
    """
    environment = metadata.get("environment")
    known = environment if isinstance(environment, Mapping) else {}
    if "game" in known and known["game"] != game:
        warnings.warn(
            f"the agent was trained on {known['game']} and plays {game}: is that the game meant?", stacklevel=3
        )
    elif known.get("distribution_mode", distribution_mode) != distribution_mode:
        warnings.warn(
            f"the agent was trained on {game}, {known['distribution_mode']}, and plays {distribution_mode} levels: "
            "is that distribution_mode meant?",
            stacklevel=3,
        )
