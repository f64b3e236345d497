"""Principal components as features of a probe: the control that sees pixels by what varies most among them."""

import torch
from jaxtyping import Float
from torch import Tensor

COMPONENTS = 256
_ROWS = 20_480  # ten for each of 2 048 features


def principal_components(
    features: Float[Tensor, "R D"], std: Float[Tensor, " D"], count: int = COMPONENTS
) -> Float[Tensor, "D K"]:
    """The map from standardised features to the leading principal components of the features in their own units.

    Each component has variance 1, as every feature of a probe has, so that penalties treat them alike. Components
    without variance are left out.

    Args:
        features: of training, of mean 0 and variance 1; a first part of them is looked at.
        std: of the features before.
        count: K, at most.
    """
    rows = features[:_ROWS] * std
    variances, directions = torch.linalg.eigh((rows.T @ rows).double() / len(rows))
    chosen = variances.argsort(descending=True)[:count]
    chosen = chosen[variances[chosen] > 1e-6 * variances.max()]
    return (std[:, None] * directions[:, chosen] * variances[chosen].rsqrt()).to(features)
