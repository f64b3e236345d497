"""Do autoencoders that differ in their seed alone find the same directions?"""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def mean_best_cosine(
    one: Float[Tensor, "F D"], other: Float[Tensor, "G D"], chosen: Bool[Tensor, " F"]
) -> Float[Tensor, ""]:
    """Mean over some latents of one dictionary of the highest cosine with any latent of the other; not a number if
    none is chosen.

    Random dictionaries are no 0: of 128 latents in 32 dimensions about .45, of 1 024 in 256 about .2.

    Args:
        one, other: directions.
        chosen: latents of the first that count.
    """
    return (F.normalize(one[chosen], dim=1) @ F.normalize(other, dim=1).T).amax(1).mean()
