"""Arms of a study that were played before: an interrupted study goes on from there."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from interpretability.kept import Kept, edit_hashes
from networks import Edit, SAEBase, TappedAgent
from networks.weights import hash_tensors


def kept_arm(
    cache_dir: str,
    agent: TappedAgent,
    edits: Sequence[Edit],
    sae: SAEBase | None,
    states: Sequence[bytes],
    known: dict[str, Any],
    play: Callable[[], dict[str, list[int]]],
) -> dict[str, list[int]]:
    """What came of playing an arm, played at the first time.

    Args:
        cache_dir: folder of all that is kept.
        agent, edits, states: what is played; their tensors and bytes decide what is found again.
        sae: whose latents the edits change.
        known: everything else that decides the outcome.
        play: the outcome, as lists of whole numbers.
    """
    description = {
        "agent": [agent.architecture, hash_tensors(agent.state_dict())],
        "edits": edit_hashes(edits),
        "sae": None if sae is None else [type(sae).__name__, hash_tensors(sae.state_dict())],
        "states": hashlib.sha256(b"".join(states)).hexdigest(),
        **known,
    }
    return Kept(cache_dir, description).numbers("arm", play)
