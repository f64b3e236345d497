"""What else a tap's activations can be written in than an autoencoder's latents: channels, and components of them.

Each is an edit like an autoencoder: `encode` to coefficients, of which small ones are set to 0, and `decode` back.
scikit-learn fits them; it is imported where it is used, for that takes a second which every other study would wait.
"""

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

_CODING_STEPS = 30  # multiplicative updates: more of them change the reconstruction in the third digit
_TINY = 1e-8


class ComponentCode(nn.Module, ABC):
    """Activations as sums of directions, on maps [B C H W] or flat activations [B C], position by position.

    A coefficient counts by what it adds to the reconstruction, |coefficient| x length of its direction; those that add
    no more than `threshold` are 0. `limited` chooses the threshold.

    Args:
        directions: what one unit of each coefficient adds.
        mean: added to all reconstructions.
    """

    directions: Tensor
    mean: Tensor
    lengths: Tensor
    threshold: Tensor

    def __init__(self, directions: Float[Tensor, "K C"], mean: Float[Tensor, " C"]) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("mean", mean)
        self.register_buffer("lengths", directions.norm(dim=1))
        self.register_buffer("threshold", torch.zeros(()))

    @abstractmethod
    def coefficients(self, rows: Float[Tensor, "*R C"]) -> Float[Tensor, "*R K"]:
        """All coefficients of some activations, channels last."""

    def encode(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B K *HW"]:
        """The coefficients that are kept, 0 in the others' places."""
        with torch.autocast(acts.device.type, enabled=False):
            found = self.coefficients(acts.movedim(1, -1).to(self.mean.dtype))
        return torch.where(found.abs() * self.lengths > self.threshold, found, 0).movedim(-1, 1)

    def decode(self, coefficients: Float[Tensor, "B K *HW"]) -> Float[Tensor, "B C *HW"]:
        """Activations from coefficients."""
        with torch.autocast(coefficients.device.type, enabled=False):
            return (coefficients.movedim(1, -1) @ self.directions + self.mean).movedim(-1, 1)

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        """The reconstruction, in the activations' own type."""
        return self.decode(self.encode(acts)).to(acts.dtype)

    @torch.no_grad()
    def limited(self, rows: Float[Tensor, "R C"], l0: float) -> Self:
        """The same code keeping as many coefficients as make `l0` a position on average over these activations: the
        largest of all, so that positions share the budget, as they do in a sparse autoencoder.

        Raises:
            ValueError: an l0 that is not above 0.
        """
        if l0 <= 0:
            raise ValueError(f"l0 is {l0}: it must be above 0")
        sizes = (self.coefficients(rows.to(self.mean.dtype)).abs() * self.lengths).flatten()
        kept = round(l0 * len(rows))
        code = copy.deepcopy(self)
        if kept < len(sizes):
            code.threshold.copy_(sizes.kthvalue(len(sizes) - kept).values)
        else:
            code.threshold.zero_()
        return code


class LinearCode(ComponentCode):
    """Coefficients are linear in the activations.

    Args:
        analysis: from an activation, less the mean, to its coefficients.
        directions, mean: see `ComponentCode`.
    """

    analysis: Tensor

    def __init__(
        self, analysis: Float[Tensor, "K C"], directions: Float[Tensor, "K C"], mean: Float[Tensor, " C"]
    ) -> None:
        super().__init__(directions, mean)
        self.register_buffer("analysis", analysis)

    def coefficients(self, rows: Float[Tensor, "*R C"]) -> Float[Tensor, "*R K"]:
        """The coefficients."""
        return (rows - self.mean) @ self.analysis.T


class NonNegativeCode(ComponentCode):
    """Coefficients, none below 0, that reconstruct an activation best: multiplicative updates from equal ones (Lee and
    Seung 2001, "Algorithms for non-negative matrix factorization").

    Args:
        directions: none below 0.
    """

    def __init__(self, directions: Float[Tensor, "K C"]) -> None:
        super().__init__(directions, directions.new_zeros(directions.shape[1]))
        self.register_buffer("products", directions @ directions.T, persistent=False)

    products: Tensor

    def coefficients(self, rows: Float[Tensor, "*R C"]) -> Float[Tensor, "*R K"]:
        """The coefficients."""
        wanted = rows.clamp_min(0) @ self.directions.T
        found = (wanted.sum(-1, keepdim=True) / self.products.sum().clamp_min(_TINY)).expand_as(wanted)
        for _ in range(_CODING_STEPS):
            found = found * wanted / (found @ self.products).clamp_min(_TINY)
        return found


def raw_channels(rows: Float[Tensor, "R C"]) -> LinearCode:
    """The channels themselves: about 0, which says nothing behind a ReLU; where some fall below 0 about their means, to
    which a coefficient that is left out falls back as it does in all other codes.
    """
    one = torch.eye(rows.shape[1])
    return LinearCode(one, one, rows.float().mean(0) if rows.min() < 0 else torch.zeros(rows.shape[1]))


def principal_components(rows: Float[Tensor, "R C"]) -> LinearCode:
    """All principal components, as many as there are channels."""
    from sklearn.decomposition import PCA

    found = PCA(svd_solver="covariance_eigh").fit(rows.double().numpy())
    directions = torch.from_numpy(found.components_).float()
    return LinearCode(directions, directions, torch.from_numpy(found.mean_).float())


def independent_components(rows: Float[Tensor, "R C"], seed: int = 0) -> LinearCode:
    """Independent components (FastICA), as many as the activations have dimensions: a channel that does not vary is
    none, nor is one that the others determine.
    """
    from sklearn.decomposition import FastICA

    values = rows.double()
    rank = int(torch.linalg.matrix_rank(torch.cov(values.T), hermitian=True, rtol=1e-9))
    found = FastICA(n_components=rank, whiten="unit-variance", max_iter=500, tol=1e-3, random_state=seed)
    with _as_far_as_it_goes():
        found.fit(values.numpy())
    analysis, mixing, mean = (torch.from_numpy(x).float() for x in (found.components_, found.mixing_, found.mean_))
    return LinearCode(analysis, mixing.T.contiguous(), mean)


def non_negative_parts(rows: Float[Tensor, "R C"], components: int, seed: int = 0) -> NonNegativeCode:
    """Non-negative matrix factorisation into any number of components, as far as 50 passes bring it.

    Raises:
        ValueError: activations below 0.
    """
    from sklearn.decomposition import MiniBatchNMF

    if rows.min() < 0:
        raise ValueError("activations below 0 have no non-negative factorisation: choose a tap after its ReLU")
    found = MiniBatchNMF(components, init="random", batch_size=4096, max_iter=50, random_state=seed)
    with _as_far_as_it_goes():
        found.fit(rows.float().numpy())
    return NonNegativeCode(torch.from_numpy(found.components_).float())


@contextmanager
def _as_far_as_it_goes() -> Iterator[None]:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
