"""What the training of one autoencoder and of a sweep of them share."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from lightning_modules.rate_schedule import scheduled
from lightning_modules.run_checks import finite_steps
from networks import SAEBase, TappedNetwork
from networks.geometric_median import geometric_median


def tap_shape(data: Any, tap: str, in_channels: int | None, kernel_size: int) -> tuple[int, ...]:
    """The shape (C, H, W) or (C,) that a data module's tap yields for one frame.

    Raises:
        ValueError: the tap is not recorded, has other channels than asked for, or no maps for a wide kernel.
    """
    shapes = data.activation_shapes
    if tap not in shapes:
        raise ValueError(
            f"model.init_args.tap is {tap!r}, but the data hold {', '.join(shapes)}: "
            "set data.init_args.taps to the same"
        )
    shape: tuple[int, ...] = shapes[tap]
    if not shape:
        raise ValueError(f"model.init_args.tap is {tap}, a single number with nothing to make sparse: choose another")
    if in_channels not in (None, shape[0]):
        raise ValueError(
            f"model.init_args.in_channels is {in_channels}, but {tap} of this agent has {shape[0]}: "
            "choose another agent or tap, or set in_channels to null"
        )
    if kernel_size > 1 and (len(shape) == 1 or getattr(data, "positions_per_frame", None) is not None):
        raise ValueError(
            f"kernel_size is {kernel_size}, but the data hold single positions of {tap}: set "
            "data.init_args.positions_per_frame to null, or kernel_size to 1 (as a flat tap needs)"
        )
    return shape


def warm_up_and_fall(optimiser: Optimizer, steps: float, warmup_steps: int, decay_fraction: float) -> dict[str, Any]:
    """What `configure_optimizers` returns for a rate that rises over its first steps and falls to 0 over its last.

    Args:
        steps: of the whole run.
        decay_fraction: part of the run over which the rate falls.

    Raises:
        ValueError: the run has no end.
    """
    steps = finite_steps(steps)
    falling = max(1.0, decay_fraction * steps)

    def height(step: int) -> float:
        return min(1.0, (step + 1) / max(1, warmup_steps), max(0.0, steps - step) / falling)

    return scheduled(optimiser, height)


def may_fuse(trainer: Any) -> bool:
    """Whether Adam may be fused.

    A fused one takes off the loss's scale by itself, so that under mixed precision Lightning does not clip its
    gradients, and who does so by hand clips gradients that are scaled still.
    """
    return not (trainer.gradient_clip_val and "mixed" in str(trainer.precision))


def start_at_median(saes: list[SAEBase], acts: Float[Tensor, "B C *HW"]) -> None:
    """Let the decoders' biases, the same on all ranks, begin as the geometric median of a batch.

    Args:
        saes: all with the same normalisation.
        acts: raw activations.
    """
    rows = acts.detach().movedim(1, -1).flatten(0, -2).float()
    median = geometric_median((rows - saes[0].mean) / saes[0].scale)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(median, 0)
    for sae in saes:
        sae.set_decoder_bias(median)


class LossTally:
    """Sums of what is logged, kept on the device; nothing here waits for it until somebody asks.

    Args:
        mend: what to do about a loss that is not finite.
    """

    def __init__(self, mend: str) -> None:
        self._mend = mend
        self._names: list[str] = []
        self._sums: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._added = 0
        self._step = self._looked_at = -1

    def add(self, numbers: Mapping[str, Float[Tensor, ""]], step: int) -> None:
        """Add the numbers of one batch, the same ones each time in whatever order; a step may have several batches."""
        self._names = self._names or list(numbers)
        self._step = step
        values = torch.stack([numbers[name] for name in self._names])
        if self._sums is None or self._first_bad is None:
            self._sums = torch.zeros_like(values)
            self._first_bad = torch.full_like(values, torch.inf)
        self._sums += values
        self._added += 1
        finite = values.isfinite()
        if finite.device.type != "cpu" or not finite.all():  # a CPU's value is at hand
            self._first_bad = torch.where(finite, self._first_bad, self._first_bad.clamp_max(step))

    def due(self, every: int) -> bool:
        """Whether to look at the means now: once in so many steps, and never for 0."""
        return every > 0 and (self._step + 1) % every == 0 and self._step != self._looked_at

    def means(self) -> dict[str, Float[Tensor, ""]]:
        """The mean of each number since the last time, by name.

        Raises:
            ValueError: a number was not finite at some step.
        """
        self.stop_if_bad()
        assert self._sums is not None, "there is nothing before the first step"
        values = dict(zip(self._names, self._sums / self._added, strict=True))
        self._sums.zero_()
        self._added = 0
        self._looked_at = self._step
        return values

    def stop_if_bad(self) -> None:
        """Look whether all numbers were finite.

        Raises:
            ValueError: names the first step at which some were not, and which.
        """
        if self._first_bad is None:
            return
        steps = dict(zip(self._names, self._first_bad.tolist(), strict=True))
        first = min(steps.values())
        if first < math.inf:
            bad = [name for name, step in steps.items() if step == first]
            losses = [name for name in bad if name.split("/")[-1] == "loss"]  # the sums of the others
            raise ValueError(f"{', '.join(losses or bad)} not finite since step {int(first)}: {self._mend}")


def origin_metadata(sae: SAEBase, data: Any, processes: int) -> dict[str, Any]:
    """What a saved autoencoder's file says of itself, of whose activations it is for, and how many rows each step saw.

    Args:
        data: the data module.
        processes: that trained together, on `batch_size` rows each.
    """
    agent: TappedNetwork = data.agent
    return {
        "kind": type(sae).__name__,
        "tap": sae.tap,
        "agent_hash": agent.weights_hash,
        "agent_architecture": agent.architecture,
        "normalisation": {"mean": sae.mean.tolist(), "scale": float(sae.scale)},
        "batch_size": data.batch_size * processes,
    }
