"""Gradients that find a way past ReLUs which block them: without it an image that drives nothing stays grey."""

from typing import Any

import torch
from torch import Tensor, nn

_TRACE = 1e-6  # above zero, but too little to matter; a pool's root of squares must still feel it


class OpenedReLU(nn.Module):
    """An edit before a ReLU that lets a gradient past it where the ReLU would block nearly all of an image's.

    The value is raised to a trace above zero, so that the ReLU behind it passes whatever gradient this edit lets by:
    that of active entries, and, in a sample where this is less than a tenth of what silent entries would be raised by,
    that as well. lucid's `redirected_relu_grad` does so where nothing at all passes, which leaves units stuck behind
    a few active entries that hardly matter to them. Redirecting always leads nowhere.
    """

    def forward(self, acts: Tensor) -> Tensor:
        result: Tensor = _OpenedReLU.apply(acts)
        return result


class _OpenedReLU(torch.autograd.Function):
    @staticmethod
    def forward(acts: Tensor) -> Tensor:
        return acts.clamp(min=_TRACE)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (acts,) = ctx.saved_tensors
        passing = torch.ops.aten.threshold_backward(gradient, acts, 0)  # a ReLU's own, many times faster than a mask
        entries = tuple(range(1, gradient.ndim))
        # in the gradient's own precision: as float32 each would be copied first
        whole, passes = (torch.linalg.vector_norm(part, dim=entries).float() for part in (gradient, passing))
        # what silent entries are raised by is at most the rest: only where that is much does one look closer
        doubtful = (0.9 * passes.square() < 0.01 * (whole.square() - passes.square())).nonzero()[:, 0]
        # the loss is minimised: a negative gradient asks for a higher activation
        raising = (gradient[doubtful] - passing[doubtful]).clamp_(max=0)
        raises = torch.linalg.vector_norm(raising, dim=entries, dtype=torch.float32)
        passes = torch.linalg.vector_norm(passing[doubtful], dim=entries, dtype=torch.float32)
        blocked = passes < 0.1 * raises
        return passing.index_add_(0, doubtful[blocked], raising[blocked])
