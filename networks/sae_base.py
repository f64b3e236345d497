"""What every kind of sparse autoencoder shares: convolutions into and out of latents, and normalisation folded in."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from networks.sae_losses import reconstruction_loss


class Progress(NamedTuple):
    """Where training stands. Tensors, so that a compiled loss is compiled once.

    Attributes:
        step: optimiser steps done.
        frequency: share of the last inputs on which each latent fired; NaN before the first input.
        dead: latents that have not fired for long.
    """

    step: Float[Tensor, ""]
    frequency: Float[Tensor, " F"]
    dead: Bool[Tensor, " F"]

    @property
    def number(self) -> int:
        """Steps done, as a plain number; waits for the device."""
        return int(self.step)


class AnyProgress(Protocol):
    """`Progress`, or what computes it on demand."""

    @property
    def number(self) -> int: ...
    @property
    def step(self) -> Float[Tensor, ""]: ...
    @property
    def frequency(self) -> Float[Tensor, " F"]: ...
    @property
    def dead(self) -> Bool[Tensor, " F"]: ...


class RowTerms(NamedTuple):
    """A loss as a kernel computes it that knows latents cut off below 0 and the k largest of them.

    Attributes:
        k: latents that an input may use; None for all above 0.
        coefficients: weights of the penalty (see `sparsity_loss`), or one for all; None for none.
        knee: of the penalty.
    """

    k: int | None = None
    coefficients: Float[Tensor, " F"] | float | None = None
    knee: float | None = None


class SAEBase(nn.Module, ABC):
    """A sparse autoencoder of one tap, on maps [B C H W] or on flat activations [B C] (treated as 1x1 maps).

    It eats and yields raw activations: the normalisation that it trains with, (acts - mean) / scale with one mean a
    channel and one scale for all, lives in buffers and is applied inside. Latents are in normalised units. As an edit
    it is used as it is: `(tap, sae)`.

    A kind is a subclass in a file of its own. It says with `activate` how latents come from pre-activations, with
    `losses` what training minimises, where it estimates something from training batches with `observe`, and where it
    has parameters beyond those here with `further_parameters`. Its constructor takes `in_channels, expansion,
    kernel_size` first and then its own arguments, all of which `config` returns.

    All arithmetic is in the parameters' precision (float32) whatever autocast is active, so that training, validation
    and splicing compute the same function; `forward` returns the activations' own type.

    Args:
        in_channels: channels C of the tap.
        expansion: latents per channel, F = expansion x C.
        kernel_size: odd width of the convolutions' window; 1 looks at one position at a time.
        unit_norm_decoder: training keeps each latent's direction at length 1 in normalised units (see
            `project_decoder_gradient` and `normalise_decoder`).

    Attributes:
        tap: name of the tap it was trained on; empty for a fresh one.
        weights_hash: hash of the file it was loaded from; empty for a fresh one.
        metadata: what that file says of it.

    Raises:
        ValueError: an argument below 1, or an even kernel_size.
    """

    mean: Tensor
    scale: Tensor
    tap: str = ""
    weights_hash: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, in_channels: int, expansion: int = 4, kernel_size: int = 1, unit_norm_decoder: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("expansion", expansion), ("kernel_size", kernel_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1 is needed")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even: choose an odd one, so that maps keep their size")
        self.in_channels, self.expansion, self.kernel_size = in_channels, expansion, kernel_size
        self.num_latents = expansion * in_channels
        self.unit_norm_decoder = unit_norm_decoder
        window = (kernel_size, kernel_size)
        decoder = torch.randn(in_channels, self.num_latents, *window)
        decoder /= decoder.flatten(2).norm(dim=(0, 2))[:, None, None]
        self.decoder_weight = nn.Parameter(decoder)
        self.decoder_bias = nn.Parameter(torch.zeros(in_channels))
        # tied at the start; decoding places the kernel the other way round, hence the flip
        self.encoder_weight = nn.Parameter(decoder.transpose(0, 1).flip(2, 3).contiguous())
        self.encoder_bias = nn.Parameter(torch.zeros(self.num_latents))
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("scale", torch.ones(()))

    @abstractmethod
    def activate(self, pre_activations: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B F *HW"]:
        """Latents, none below 0, from pre-activations."""

    def losses(
        self,
        pre_activations: Float[Tensor, "B F *HW"],
        latents: Float[Tensor, "B F *HW"],
        errors: Float[Tensor, "B C *HW"],
        progress: Progress,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms, by name, whose sum training minimises: a pure function, compiled with the rest of the step.

        Args:
            pre_activations, latents: of one batch; the latents are what `activate` makes of the pre-activations.
            errors: reconstruction minus activation in normalised units.
            progress: what else a term may depend on.
        """
        return {"reconstruction": reconstruction_loss(errors)}

    def row_terms(self, progress: AnyProgress) -> RowTerms | None:
        """The same as `activate` and `losses`, for kinds that need no more than this; None for others."""
        return None

    @torch.no_grad()
    def observe(self, latents: Float[Tensor, "B F *HW"]) -> None:
        """Look at a training batch's latents, to estimate what evaluation needs; most kinds need nothing."""

    def further_parameters(self) -> dict[nn.Parameter, float]:
        """Parameters [F] that this kind has beside encoder and decoder, and the value that a new latent begins with."""
        return {}

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, to build the same autoencoder again."""
        return {"in_channels": self.in_channels, "expansion": self.expansion, "kernel_size": self.kernel_size}

    @torch.no_grad()
    def set_normalisation(self, mean: Float[Tensor, " C"], scale: Float[Tensor, ""]) -> None:
        """Store the tap's per-channel mean and its one scale.

        Raises:
            ValueError: another number of channels, or a scale that is not a positive finite number.
        """
        if mean.shape != self.mean.shape:
            raise ValueError(
                f"the mean has shape {tuple(mean.shape)}: this autoencoder has {self.in_channels} channels"
            )
        if not (torch.isfinite(mean).all() and math.isfinite(float(scale)) and float(scale) > 0):
            raise ValueError(
                f"mean and scale ({float(scale)}) must be finite and the scale above 0: "
                "the recorded activations are constant or not finite, check the agent"
            )
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    @torch.no_grad()
    def set_decoder_bias(self, bias: Float[Tensor, " C"]) -> None:
        """Begin with this reconstruction (in normalised units) where no latent fires, and have the encoder see what
        differs from it: its bias moves too.
        """
        self.encoder_bias.sub_(self.encoder_weight.sum((2, 3)) @ (bias - self.decoder_bias))
        self.decoder_bias.copy_(bias)

    @torch.no_grad()
    def project_decoder_gradient(self) -> None:
        """Take from the decoder's gradient what would only change the lengths of directions."""
        gradient = self.decoder_weight.grad
        if gradient is not None:
            along = (gradient * self.decoder_weight).sum((0, 2, 3)) / self.decoder_norms().square()
            gradient.sub_(along[:, None, None] * self.decoder_weight)

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Bring each latent's direction to length 1 in normalised units."""
        self.decoder_weight.div_(self.decoder_norms().clamp_min(1e-12)[:, None, None])

    def pre_activations(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B F *HW"]:
        """What `activate` makes latents of: has a gradient also where a latent is silent.

        Raises:
            ValueError: another number of channels, or flat activations with a kernel wider than 1.
        """
        if acts.ndim < 2 or acts.shape[1] != self.in_channels:
            raise ValueError(
                f"activations of shape {tuple(acts.shape)} do not fit an autoencoder of {self.in_channels} channels: "
                f"it was made for {self.tap or 'another tap'}"
            )
        with torch.autocast(acts.device.type, enabled=False):
            acts = acts.to(self.mean.dtype)
            normal = (acts - _along_channels(self.mean, acts)) / self.scale
            return self.convolve(normal, self.encoder_weight, self.encoder_bias)

    def encode(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B F *HW"]:
        """Latents of raw activations; raises like `pre_activations`."""
        with torch.autocast(acts.device.type, enabled=False):
            return self.activate(self.pre_activations(acts))

    def decode(self, latents: Float[Tensor, "B F *HW"]) -> Float[Tensor, "B C *HW"]:
        """Raw activations from latents."""
        with torch.autocast(latents.device.type, enabled=False):
            normal = self.convolve(latents.to(self.mean.dtype), self.decoder_weight, self.decoder_bias)
            return normal * self.scale + _along_channels(self.mean, normal)

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        """The reconstruction of raw activations, in their own type."""
        return self.decode(self.encode(acts)).to(acts.dtype)

    def decoder_norms(self) -> Float[Tensor, " F"]:
        """Length of each latent's direction in normalised units."""
        return self.decoder_weight.flatten(2).square().sum((0, 2)).sqrt()

    def directions(self) -> Float[Tensor, "F C K K"]:
        """What one unit of each latent adds to the raw activations around its position."""
        return (self.decoder_weight * self.scale).transpose(0, 1)

    def convolve(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Inputs [B I *HW] through a kernel [O I K K] that keeps the size of maps.

        Raises:
            ValueError: flat inputs with a kernel wider than 1.
        """
        if self.kernel_size == 1:  # a matrix product over the channels, for maps and flat activations alike
            return F.linear(inputs.movedim(1, -1), weight[:, :, 0, 0], bias).movedim(-1, 1)
        if inputs.ndim != 4:
            raise ValueError(
                f"activations of {inputs.ndim} dimensions have no neighbours for kernel_size {self.kernel_size}: "
                "record whole maps (positions_per_frame: null), or use kernel_size 1"
            )
        return F.conv2d(inputs, weight, bias, padding=self.kernel_size // 2)


def _along_channels(values: Float[Tensor, " C"], like: Float[Tensor, "B C *HW"]) -> Tensor:
    return values.view(1, -1, *(1 for _ in range(like.ndim - 2)))
