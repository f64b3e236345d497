"""What a readout is fitted to: the answers of its targets as losses, and the way back from the fit to the readout."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_modules.probe_fit import Fit
from lightning_modules.probe_losses import ClassLoss, Loss, SquaredLoss
from networks.linear_readout import LinearReadout


class Answers:
    """The answers of all of a readout's targets of one kind, numbers standardised.

    Args:
        readout: that is to tell them.
        is_class: whether of its classes or of its numbers.
        truth: by split and target, class indices [R] or numbers [R D], NaN or -1 where there is none.
        order: in which training rows are given the answers, where they are shuffled.

    Attributes:
        losses: by split.
    """

    def __init__(
        self,
        readout: LinearReadout,
        is_class: bool,
        truth: Mapping[str, Mapping[str, Shaped[Tensor, "R *D"]]],
        order: Int[Tensor, " R"] | None,
    ) -> None:
        self._readout, self._is_class = readout, is_class
        self._names = [name for name in readout.outputs if (name in readout.classes) == is_class]
        self._sizes = [len(readout.outputs[name]) for name in self._names]
        answers = {
            split: torch.cat([each[n].view(len(each[n]), -1) for n in self._names], 1) for split, each in truth.items()
        }
        if order is not None:
            answers["training"] = answers["training"][order]
        self._training = answers["training"]
        device = readout.weight.device
        self._mean, self._std = torch.zeros(self.outputs), torch.ones(self.outputs)
        if not is_class:
            self._mean, self._std = column_moments(answers["training"])
            answers = {split: ((values - self._mean) / self._std).float() for split, values in answers.items()}
        self.losses: dict[str, Loss] = {
            split: (ClassLoss if is_class else SquaredLoss)(values.to(device), self._sizes)
            for split, values in answers.items()
        }

    @property
    def targets(self) -> int:
        """How many."""
        return len(self._sizes)

    @property
    def outputs(self) -> int:
        """Of all targets."""
        return sum(self._sizes)

    def write(self, fit: Fit) -> None:
        """Put what was found for these targets into the readout, for answers in their own units."""
        readout = self._readout
        mean, std = self._mean.to(fit.bias), self._std.to(fit.bias)
        weight, bias = fit.weight * std[:, None], fit.bias * std + mean
        start = 0
        for index, (name, size) in enumerate(zip(self._names, self._sizes, strict=True)):
            columns, place = readout.columns(name), list(readout.outputs).index(name)
            mine = slice(start, start + size)
            readout.weight[columns], readout.bias[columns] = weight[mine], bias[mine]
            readout.strength[place], readout.validation_loss[place] = fit.strength[index], fit.validation_loss[index]
            if self._is_class:
                labels = self._training[:, index]
                counts = torch.bincount(labels[labels >= 0], minlength=size)
                readout.fitted[place] = counts.any()
                readout.constant[columns] = (counts / counts.sum().clamp_min(1)).to(bias)
            else:
                readout.fitted[place] = self._training[:, start].isfinite().any()
                readout.constant[columns] = mean[mine]
            start += size


def column_moments(values: Float[Tensor, "R O"]) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
    """Mean and std of the known values of each column; 0 and 1 where there is nothing, or it does not vary."""
    mean = values.nanmean(0).nan_to_num(0.0)
    std = (values - mean).square().nanmean(0).nan_to_num(0.0).sqrt()
    return mean, std.where(std > 0, 1.0)
