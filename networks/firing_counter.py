"""How often each latent fires: buffers beside an autoencoder, saved with every checkpoint."""

from functools import cached_property

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from networks.sae_base import Progress


class FiringCounter(nn.Module):
    """Counts firings over a window of inputs (an input is one position of one map, or one flat activation).

    Nothing here waits for the device. In distributed training each update sums over ranks, so buffers are the same
    on all of them.

    Args:
        num_latents: latents F.
        window: inputs without firing after which a latent is dead.

    Attributes:
        since_fired: inputs seen since each latent last fired, to the batch [F].
        counts, inputs: firings [F] and inputs of the window in progress.
        last_counts, last_inputs: the same of the window before it.
        seen: inputs in all.

    Raises:
        ValueError: a window below 1.
    """

    since_fired: Tensor
    counts: Tensor
    inputs: Tensor
    last_counts: Tensor
    last_inputs: Tensor
    seen: Tensor

    def __init__(self, num_latents: int, window: int) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"a window of {window} inputs is too short: at least 1 is needed")
        self.window = window
        for name in ("since_fired", "counts", "last_counts"):
            self.register_buffer(name, torch.zeros(num_latents, dtype=torch.int64))
        for name in ("inputs", "last_inputs", "seen"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, fired: Int[Tensor, " F"], inputs: int) -> None:
        """Add one batch: how often each latent fired in so many inputs, on this rank."""
        total: Tensor | int = inputs
        if dist.is_available() and dist.is_initialized():
            both = torch.cat([fired.to(torch.int64), fired.new_full((1,), inputs, dtype=torch.int64)])
            dist.all_reduce(both)
            fired, total = both[:-1], both[-1]
        counts, count = self.counts, self.inputs
        if count.device.type != "cpu":
            full = count >= self.window
            for now, last in ((counts, self.last_counts), (count, self.last_inputs)):
                last.copy_(torch.where(full, now, last))
                now.masked_fill_(full, 0)
        elif int(count) >= self.window:  # a CPU's value is at hand
            for now, last in ((counts, self.last_counts), (count, self.last_inputs)):
                last.copy_(now)
                now.zero_()
        counts.add_(fired)
        count.add_(total)
        self.seen.add_(total)
        self.since_fired.add_(total).masked_fill_(fired > 0, 0)

    def dead(self) -> Bool[Tensor, " F"]:
        """Latents that have not fired in the last `window` inputs; none before so many were seen."""
        return self.since_fired >= self.window

    def frequency(self) -> Float[Tensor, " F"]:
        """Share of inputs on which each latent fired, over the last one to two windows (float64; NaN if none)."""
        return (self.counts + self.last_counts).double() / (self.inputs + self.last_inputs)

    @torch.no_grad()
    def forget(self, latents: Bool[Tensor, " F"]) -> None:
        """Count these latents as just fired: they were made anew."""
        for buffer in (self.since_fired, self.counts, self.last_counts):
            buffer.masked_fill_(latents, 0)


class ProgressNow:
    """`Progress` with what a counter says now, each part computed when it is first asked for: most kinds need none, and
    on a CPU all of it takes as long as several hundred inputs.

    Args:
        number: optimiser steps done.
        firing: the counter; it must not have gone on when a part is first asked for.
    """

    def __init__(self, number: int, firing: FiringCounter) -> None:
        self.number, self._firing = number, firing

    @cached_property
    def step(self) -> Float[Tensor, ""]:
        """Optimiser steps done."""
        return torch.full((), float(self.number), device=self._firing.seen.device)

    @cached_property
    def frequency(self) -> Float[Tensor, " F"]:
        """Share of the last inputs on which each latent fired; NaN before the first input."""
        return self._firing.frequency().float()

    @cached_property
    def dead(self) -> Bool[Tensor, " F"]:
        """Latents that have not fired for long."""
        return self._firing.dead()

    def tensors(self) -> Progress:
        """All of it, for what is compiled."""
        return Progress(self.step, self.frequency, self.dead)
