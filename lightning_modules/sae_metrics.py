"""Metrics of an autoencoder over a whole validation set: sums over batches and ranks first, one division at the end."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

_ALMOST_DEAD = 1e-5  # firing frequency
_DUPLICATE = 0.9  # cosine to the nearest other direction above which a latent counts as a duplicate
_FRAMES_AT_ONCE = 16  # whose firings are held as numbers


class ExplainedVariance(Metric):
    """1 - squared error / variance over everything seen, about the per-channel and about the per-position mean.

    A channel that never changes (or a neuron, for the per-position mean) has no variance to explain: it is left out of
    both sums, and counted. Sums are in float64, good for means up to about 10 000 standard deviations.

    Args:
        shape: the tap's shape for one input, (C, H, W) or (C,).

    Attributes:
        by_channel: what the last `compute` found of each channel by itself; NaN where it does not vary.
    """

    full_state_update = False
    by_channel: Float[Tensor, " C"]
    errors: Tensor
    sums: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor
    rows: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        for name in ("errors", "sums", "squares"):
            self.add_state(name, torch.zeros(*shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("low", torch.full(tuple(shape), torch.inf, dtype=torch.float64), dist_reduce_fx="min")
        self.add_state("high", torch.full(tuple(shape), -torch.inf, dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, reconstruction: Float[Tensor, "B C *HW"], acts: Float[Tensor, "B C *HW"]) -> None:
        """Add a batch of raw activations and what the autoencoder makes of them."""
        acts = acts.double()
        self.errors += (reconstruction - acts).square().sum(0)
        self.sums += acts.sum(0)
        self.squares += acts.square().sum(0)
        self.low = torch.minimum(self.low, acts.amin(0))
        self.high = torch.maximum(self.high, acts.amax(0))
        self.rows += len(acts)

    def compute(self) -> dict[str, Tensor]:
        """Fractions `explained_variance`, `explained_variance_position`, NaN where nothing varies; how many were left
        out, `zero_variance_channels` and `zero_variance_neurons`; and `explained_variance_least_channel`, of the
        channel that fares worst.
        """
        states = (self.sums, self.squares, self.errors, self.low, self.high)
        sums, squares, errors, low, high = (state.flatten(1) if state.ndim > 1 else state[:, None] for state in states)
        neuron_variances = squares - sums.square() / self.rows
        neuron_varies = high > low
        inputs = self.rows * sums.shape[1]
        channel_variances = squares.sum(1) - sums.sum(1).square() / inputs
        channel_varies = high.amax(1) > low.amin(1)
        self.by_channel = torch.where(channel_varies, 1 - errors.sum(1) / channel_variances, torch.nan)
        least = self.by_channel.nan_to_num(torch.inf).amin()
        return {
            "explained_variance": 1 - errors.sum(1)[channel_varies].sum() / channel_variances[channel_varies].sum(),
            "explained_variance_position": 1 - errors[neuron_varies].sum() / neuron_variances[neuron_varies].sum(),
            "explained_variance_least_channel": least.nan_to_num(posinf=torch.nan),
            "zero_variance_channels": (~channel_varies).sum(),
            "zero_variance_neurons": (~neuron_varies).sum(),
        }


class Sparsity(Metric):
    """How many units are above 0 at once, how large they are, and which hardly ever or never are.

    Args:
        units: latents F, or channels C of the raw tap.
    """

    full_state_update = False
    counts: Tensor
    inputs: Tensor
    inside_firings: Tensor
    inside_inputs: Tensor
    sizes: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(units, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("inputs", "inside_firings", "inside_inputs"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sizes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        values: Float[Tensor, "B F *HW"],
        inside: Bool[Tensor, "B *HW"] | None = None,
        lengths: Float[Tensor, " F"] | None = None,
    ) -> None:
        """Add a batch of latents or activations.

        Args:
            values: none below 0; of a raw tap that falls below 0 its absolute values.
            inside: mask of positions inside the maze, where there is one.
            lengths: of each latent's direction; 1 for those of channels.
        """
        rows = values.movedim(1, -1)
        active = rows > 0
        sums = rows.flatten(0, -2).sum(0, dtype=torch.float64)
        self.sizes += sums.sum() if lengths is None else sums @ lengths.double()
        self.counts += active.flatten(0, -2).sum(0)
        self.inputs += active[..., 0].numel()
        if inside is not None:
            self.inside_firings += (active.sum(-1) * inside).sum()
            self.inside_inputs += inside.sum()

    def compute(self) -> dict[str, Tensor]:
        """`l0` and `l0_inside`: units above 0 per position, everywhere and inside the maze (NaN without a mask);
        `l1`: sum over units of value x length of direction, per position;
        `dead_fraction`: share of units that were never above 0;
        `almost_dead_fraction`: share of units that were above 0 at less than one position in 100 000, the dead too.
        """
        return {
            "l0": self.counts.sum() / self.inputs,
            "l0_inside": self.inside_firings / self.inside_inputs,
            "l1": self.sizes / self.inputs,
            "dead_fraction": (self.counts == 0).double().mean(),
            "almost_dead_fraction": (self.counts < _ALMOST_DEAD * self.inputs).double().mean(),
        }


class Firing(Metric):
    """How often, how strongly and where each latent fires, over everything seen.

    Args:
        latents: F.
        space: (H, W) of the tap's map; empty for flat activations, which count as maps of one position.
    """

    full_state_update = False
    maps: Tensor
    sums: Tensor
    scatter: Tensor
    inputs: Tensor
    coordinates: Tensor

    def __init__(self, latents: int, space: Sequence[int] = ()) -> None:
        super().__init__()
        height, width = space or (1, 1)
        self.add_state("maps", torch.zeros(height * width, latents, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("sums", "scatter"):
            self.add_state(name, torch.zeros(latents, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("inputs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        y, x = (torch.arange(side, dtype=torch.float32) - (side - 1) / 2 for side in (height, width))
        grid = torch.cartesian_prod(y, x).view(-1, 2)
        moments = torch.stack([torch.ones(len(grid)), *grid.unbind(1), grid.square().sum(1)])
        self.register_buffer("coordinates", moments, persistent=False)

    def update(self, latents: Float[Tensor, "B F *HW"]) -> None:
        """Add a batch of latents, none below 0."""
        rows = latents.movedim(1, -1).reshape(len(latents), -1, latents.shape[1])
        self.inputs += rows[..., 0].numel()
        for part in rows.split(_FRAMES_AT_ONCE):
            active = (part > 0).to(self.coordinates.dtype)  # sums of a few frames are exact, and quick, in float32
            self.maps += active.sum(0).to(torch.int64)
            self.sums += part.sum(1).sum(0, dtype=torch.float64)
            with torch.autocast(active.device.type, enabled=False):  # in bfloat16 they would be far from exact
                moments = self.coordinates @ active
            count, y, x, squares = moments.double().unbind(1)
            self.scatter += (squares - (y.square() + x.square()) / count.clamp_min(1)).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Columns [F], in float64:

        - `frequency`: share of positions at which the latent is above 0
        - `mean_active`: its mean where it is
        - `spread`: root mean square distance, in positions of the map, of a firing from the centroid of all its firings
          in the same frame: 0 for one that fires at one position at a time, 3.2 for one that fires all over 8 x 8
        - `places`: at how many positions of the map it fires, taking all frames together: exp of the entropy of its
          map of firings

        All but `frequency` are NaN for a latent that never fires.
        """
        counts = self.maps.sum(0).double()
        shares = self.maps / counts
        return {
            "frequency": counts / self.inputs,
            "mean_active": self.sums / counts,
            "spread": (self.scatter.clamp_min(0) / counts).sqrt(),
            "places": torch.special.entr(shares).sum(0).exp(),
        }


class Coverage(Metric):
    """What a validation looked at: how many frames, of how many levels."""

    full_state_update = False
    levels: list[Tensor]
    frames: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("levels", [], dist_reduce_fx="cat")
        self.add_state("frames", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, levels: Int[Tensor, " B"]) -> None:
        """Add the level seed of each frame of a batch."""
        self.levels.append(levels.unique())
        self.frames += len(levels)

    def compute(self) -> dict[str, Tensor]:
        """Counts `validation_frames` and `validation_levels`."""
        levels = self.levels if isinstance(self.levels, Tensor) else torch.cat(self.levels)
        return {"validation_frames": self.frames, "validation_levels": torch.tensor(len(levels.unique()))}


def nearest_cosines(directions: Float[Tensor, "F D"]) -> Float[Tensor, " F"]:
    """Cosine of each direction to the nearest other one; 0 where a direction has no length, NaN for a single one.

    Kernels wider than 1 are compared as they lie: a shifted copy is no duplicate.
    """
    if len(directions) < 2:
        return torch.full_like(directions[:, 0], torch.nan)
    unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(torch.finfo(directions.dtype).tiny)
    return (unit @ unit.T).fill_diagonal_(-torch.inf).amax(1)


def channel_cosines(directions: Float[Tensor, "F D"]) -> Float[Tensor, " F"]:
    """Cosine of each direction to the nearest single channel (at one place of the kernel), of either sign: 1 for a
    latent that is a raw channel over again; 0 where a direction has no length.
    """
    return directions.abs().amax(1) / directions.norm(dim=1).clamp_min(torch.finfo(directions.dtype).tiny)


def effective_number(shares: Float[Tensor, " F"]) -> Float[Tensor, ""]:
    """How many units share something as unevenly as these: exp of the entropy, from 1 (one has all) to F (all alike);
    NaN where there is nothing to share.
    """
    shares = shares / shares.sum()
    return torch.special.entr(shares).sum().exp()


def dictionary_metrics(
    directions: Float[Tensor, "F D"], lengths: Float[Tensor, " F"], firing: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What kind of dictionary it is: `nearest_cosine` (mean) and `duplicate_fraction`; `channel_cosine`, the mean of
    `channel_cosines` weighted by what each latent contributes (how often it fires x how large it is then), 1 for a
    dictionary that is the raw channels over again; and `effective_latents`, the effective number of contributions.

    Args:
        directions: of the latents, in units of the activations.
        lengths: of the directions in normalised units.
        firing: columns of `Firing`.
    """
    nearest, channel = nearest_cosines(directions), channel_cosines(directions)
    shares = (firing["frequency"] * firing["mean_active"].nan_to_num()).to(channel) * lengths
    return {
        "nearest_cosine": nearest.mean(),
        "duplicate_fraction": (nearest > _DUPLICATE).float().mean(),
        "channel_cosine": (channel * shares).sum() / shares.sum(),
        "effective_latents": effective_number(shares),
    }
