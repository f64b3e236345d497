"""Linear readouts of a tap: what a probe has learnt, and the directions in the activation that it reads along."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

Form = Literal["flat", "pooled", "position"]
FORMS: tuple[Form, ...] = ("flat", "pooled", "position")


class Direction(NamedTuple):
    """A direction in what a tap yields.

    Attributes:
        vector: of length 1 and the tap's shape; or [C], a direction of channels at each position by itself.
        mean: of the activation's component along it (its product with `vector`), over training frames.
        std: of that component.
    """

    vector: Float[Tensor, "C *HW"]
    mean: float
    std: float


def reduced_shape(shape: Sequence[int], max_features: int) -> tuple[int, ...]:
    """The largest map of a tap that mean pooling can make of at most so many features; flat taps stay as they are.

    Raises:
        ValueError: a tap with more channels than that.
    """
    if shape[0] > max_features:
        raise ValueError(f"a tap of {shape[0]} channels has no form of {max_features} features: raise max_features")
    side = int((max_features // shape[0]) ** 0.5)
    return (shape[0], *(min(size, side) for size in shape[1:]))


def reduce_activations(acts: Shaped[Tensor, "B C *HW"], shape: Sequence[int]) -> Shaped[Tensor, "B C *hw"]:
    """Activations mean-pooled to a smaller map, in float32; linear, so that directions go back the way they came."""
    acts = acts.float()
    if tuple(acts.shape[1:]) == tuple(shape):
        return acts
    _, height, width = shape
    return functional.adaptive_avg_pool2d(acts, (height, width))


class LinearReadout(nn.Module):
    """Scores of targets, linear in a tap's activation.

    The form says what one row of features is: `flat` the map (mean-pooled to `reduced`), `pooled` its mean over
    positions, `position` the channels of one position of it, as a 1x1 convolution.

    Args:
        tap: what is read.
        form: of the features.
        shape: the tap's shape for one input, (C, H, W) or (C,).
        reduced: the shape to which maps are pooled first.
        outputs: names of each target's outputs: classes, or numbers.

    Attributes:
        weight: [O features], outputs of all targets one after another, for features as they are.
        bias: [O].
        fitted: for each target whether there was anything to fit.
        strength: chosen L2 penalty: the mean loss plus strength / 2 x squared length of the weights was minimised,
            both for features (and numbers) of variance 1.
        validation_loss: with it, on validation levels.
        constant: the best answer that needs no activation: for each output its share, or the mean.
        usual_position: of each target in the position form the position where it is most often.
        component_mean, component_std: of the activation along each output's direction (before it has length 1).
    """

    constant: Tensor
    usual_position: Tensor
    fitted: Tensor
    strength: Tensor
    validation_loss: Tensor
    component_mean: Tensor
    component_std: Tensor

    def __init__(
        self,
        tap: str,
        form: Form,
        shape: Sequence[int],
        reduced: Sequence[int],
        outputs: Mapping[str, Sequence[str]],
        classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.tap, self.form, self.shape, self.reduced = tap, form, tuple(shape), tuple(reduced)
        self.outputs = {target: tuple(names) for target, names in outputs.items()}
        self.classes = tuple(classes)
        count = sum(map(len, self.outputs.values()))
        features = self.reduced[0]
        if form == "flat":
            features = int(torch.Size(self.reduced).numel())
        self.weight = nn.Parameter(torch.zeros(count, features))
        self.bias = nn.Parameter(torch.zeros(count))
        for name in ("constant", "component_mean", "component_std"):
            self.register_buffer(name, torch.zeros(count))
        self.register_buffer("fitted", torch.zeros(len(self.outputs), dtype=torch.bool))
        if form == "position":
            self.register_buffer("usual_position", torch.zeros(len(self.outputs), dtype=torch.int64))
        for name in ("strength", "validation_loss"):
            self.register_buffer(name, torch.zeros(len(self.outputs)))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "tap": self.tap,
            "form": self.form,
            "shape": list(self.shape),
            "reduced": list(self.reduced),
            "outputs": {target: list(names) for target, names in self.outputs.items()},
            "classes": list(self.classes),
        }

    def columns(self, target: str) -> slice:
        """Which outputs are a target's.

        Raises:
            ValueError: a target that is not read.
        """
        start = 0
        for name, outputs in self.outputs.items():
            if name == target:
                return slice(start, start + len(outputs))
            start += len(outputs)
        raise ValueError(f"this readout of {self.tap} has no target {target!r}: choose among {', '.join(self.outputs)}")

    def features(self, acts: Shaped[Tensor, "B C *HW"]) -> Float[Tensor, "R features"]:
        """Rows of features; positions of one frame follow each other, row by row of the map."""
        maps = reduce_activations(acts, self.reduced)
        if self.form == "flat" or maps.ndim == 2:
            return maps.flatten(1)
        rows = maps.flatten(2)
        return rows.mean(2) if self.form == "pooled" else rows.transpose(1, 2).flatten(0, 1)

    def forward(self, acts: Shaped[Tensor, "B C *HW"]) -> Float[Tensor, "B O *hw"]:
        """Scores: logits of classes, or numbers; maps of them [B O h w] in the position form."""
        scores = functional.linear(self.features(acts), self.weight, self.bias)
        if self.form != "position":
            return scores
        return scores.unflatten(0, (len(acts), *self.reduced[1:])).permute(0, 3, 1, 2)

    def direction_weights(self) -> Float[Tensor, "O features"]:
        """Weights of each output; a class's against the mean of its target's classes, for only that changes answers."""
        weights = self.weight.detach().clone()
        for target in self.classes:
            columns = self.columns(target)
            weights[columns] -= weights[columns].mean(0)
        return weights

    @torch.inference_mode(False)  # gradients are needed, also where a Trainer tests
    def direction(self, target: str, output: str) -> Direction:
        """The direction in the tap's activation along which one output of a target is read.

        Raises:
            ValueError: an unknown target or output, or one that nothing was fitted for.
        """
        columns = self.columns(target)
        if output not in self.outputs[target]:
            raise ValueError(f"{target} has no output {output!r}: choose among {', '.join(self.outputs[target])}")
        index = columns.start + self.outputs[target].index(output)
        weights = self.direction_weights()[index]
        vector = weights
        if self.form != "position":  # back through the pooling, which is linear: the gradient of the score
            inputs = torch.zeros(1, *self.shape, device=weights.device, requires_grad=True)
            with torch.enable_grad():
                (vector,) = torch.autograd.grad(self.features(inputs)[0] @ weights, inputs)
            vector = vector[0]
        length = vector.norm()
        if not length > 0:
            raise ValueError(f"{target} of {self.tap} reads nothing (its weights are zero): there is no direction")
        mean, std = self.component_mean[index] / length, self.component_std[index] / length
        return Direction(vector / length, float(mean), float(std))
