"""What the processes of distributed training (its ranks) have in common; a single process is the only rank.

Every rank calls these functions, at the same moments, or none does: they wait for each other.
"""

import io
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, distributed


def world_size() -> int:
    """How many ranks there are, over all nodes."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this process is."""
    return distributed.get_rank() if _together() else 0


def rank_seed(seed: int) -> int:
    """A seed of this rank's own, from one that all share; the first rank, so also a single process, takes that itself.

    The others' come from numpy's SeedSequence, which keeps streams apart that `seed + rank` would mix with those of a
    run whose seed is one higher.
    """
    mine = rank()
    return seed if mine == 0 else int(np.random.SeedSequence(seed, spawn_key=(mine,)).generate_state(1)[0])


def gather(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "W ..."]:
    """The tensors of all ranks, which have one shape, stacked in the order of ranks, on the device of `values`."""
    if not _together():
        return values.unsqueeze(0)
    sent = values.contiguous()
    if distributed.get_backend() == "nccl":  # it knows no tensors in main memory
        sent = sent.to(torch.device("cuda", torch.cuda.current_device()))
    received = [torch.empty_like(sent) for _ in range(world_size())]
    distributed.all_gather(received, sent)
    return torch.stack(received).to(values.device)


def gather_states(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of all ranks: dictionaries of primitives and tensors in main memory, of any size."""
    if not _together():
        return [state]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    packed = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    sizes = gather(torch.tensor(len(packed))).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(packed)] = packed
    return [
        torch.load(io.BytesIO(row[:size].numpy().tobytes()), weights_only=True)
        for row, size in zip(gather(padded), sizes, strict=True)
    ]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
