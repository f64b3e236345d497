"""What a bilinear layer computes towards a direction of its output, read off its weights.

A layer whose units are (w_o . x + b_o)(v_o . x + c_o) is, projected on a direction u, one quadratic function of its
input: x^T B x + l . x + k with B = sum_o u_o (w_o v_o^T + v_o w_o^T) / 2, l = sum_o u_o (c_o w_o + b_o v_o) and
k = sum_o u_o b_o c_o. B is symmetric: its eigenvectors are patterns that each contribute their eigenvalue times the
square of their own product with the input, and none of them interacts with another (Pearce, Dooms, Rigg, Oramas and
Sharkey 2024, arXiv 2410.08417). A convolution does the same to each patch; its eigenvectors are filters (Oozeer,
Erisken and Rigg 2024, arXiv 2412.00944). What the biases do is in l and k, so nothing is approximated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from interpretability.pictures import Row, Tile, sheet
from networks import BilinearConv2d, BilinearLinear


@dataclass(frozen=True)
class BilinearDecomposition:
    """A bilinear layer towards one direction, in float64: x^T B x + linear . x + constant, with B by eigenvectors.

    D is the size of the input: features, or channels x kernel x kernel of a patch.

    Attributes:
        eigenvalues: of B, the largest magnitude first. At most twice as many as the direction has units are not zero.
        eigenvectors: of length 1 and orthogonal, one for each eigenvalue, shaped like the input: [D D] or [D C K K].
            As B does not know a sign, the largest entry of each is positive.
        linear: l, shaped like the input.
        constant: k.
        padding: of the convolution; None for a fully connected layer.
        stride: of the convolution.
    """

    eigenvalues: Float[Tensor, " D"]
    eigenvectors: Float[Tensor, "D ..."]
    linear: Float[Tensor, "..."]
    constant: Float[Tensor, ""]
    padding: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 1)

    def components(self, inputs: Float[Tensor, "B ..."], rank: int | None = None) -> Float[Tensor, "B R ..."]:
        """What each of the first `rank` eigenvectors contributes: eigenvalue x (eigenvector . input) squared.

        Args:
            inputs: of the layer, [B D] or maps [B C H W].
            rank: how many of them, all by default.

        Returns:
            [B R], or maps [B R H W] over the layer's output positions.

        Raises:
            ValueError: more than there are, or fewer than none.
        """
        return self._parts(inputs, rank)[1]

    def rebuild(self, inputs: Float[Tensor, "B ..."], rank: int | None = None) -> Float[Tensor, "B ..."]:
        """The layer's output along the direction, from the linear part and the first `rank` eigenvectors.

        With all of them it is the layer's own output, projected. Arguments and errors as `components`.

        Returns:
            [B], or maps [B H W].
        """
        linear, components = self._parts(inputs, rank)
        return linear + components.sum(1) + self.constant

    def largest_error(self, rank: int) -> float:
        """The largest error that `rebuild` from the first `rank` eigenvectors makes on an input of length 1.

        It is the magnitude of the next eigenvalue, and so falls with the rank; an input's own error need not, as
        contributions of both signs may cancel. For other inputs times the square of their length (of the patch).
        """
        rank = self._checked(rank)
        return self.eigenvalues[rank].abs().item() if rank < len(self.eigenvalues) else 0.0

    def _checked(self, rank: int | None) -> int:
        number = len(self.eigenvalues)
        if rank is not None and not 0 <= rank <= number:
            raise ValueError(f"rank {rank} must lie in 0 to {number}, the number of eigenvectors")
        return number if rank is None else rank

    def _parts(self, inputs: Tensor, rank: int | None) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B R ..."]]:
        """The linear part and the components, by one product of the input with all patterns."""
        rank = self._checked(rank)
        patterns = torch.cat([self.linear.unsqueeze(0), self.eigenvectors[:rank]])
        inputs = inputs.to(patterns)
        if self.padding is None:
            products = functional.linear(inputs, patterns)
        else:
            products = functional.conv2d(inputs, patterns, stride=self.stride, padding=self.padding)
        eigenvalues = self.eigenvalues[:rank].view(-1, *[1] * (products.ndim - 2))
        return products[:, 0], products[:, 1:].square() * eigenvalues


@torch.no_grad()
def decompose(layer: BilinearConv2d | BilinearLinear, direction: Float[Tensor, " O"]) -> BilinearDecomposition:
    """Decompose a bilinear layer towards a direction of its output, exactly.

    For example `decompose(agent.fc2, agent.fc3.weight[action])` for a logit, whose inputs are what the tap `fc1`
    yields; a unit vector for one channel of `conv4a`, whose inputs are those of the tap `pool3`; or the weights of a
    probe. A direction over whole maps, such as a probe's on the flattened tap, goes through `split_direction` first.

    Args:
        layer: of a `BilinearImpala`.
        direction: a weight for each of the layer's output units.

    Raises:
        ValueError: a direction of another size, or one that is not finite.
    """
    number = len(layer.weight) // 2
    if direction.shape != (number,) or not direction.isfinite().all():
        raise ValueError(
            f"the direction is {tuple(direction.shape)}: give a finite weight for each of the layer's {number} units"
        )
    assert layer.bias is not None
    direction = direction.to(layer.weight.device, torch.float64)
    left, right = layer.weight.double().flatten(1).split(number)
    left_bias, right_bias = layer.bias.double().split(number)
    half = left.T @ (direction.unsqueeze(1) * right)
    eigenvalues, columns = torch.linalg.eigh((half + half.T) / 2)
    order = eigenvalues.abs().argsort(descending=True)
    eigenvectors = columns.T[order]
    largest = eigenvectors.gather(1, eigenvectors.abs().argmax(1, keepdim=True))
    shape = layer.weight.shape[1:]
    where: dict[str, tuple[int, int]] = {}
    if isinstance(layer, nn.Conv2d):
        where = {"padding": _pair(layer.padding), "stride": _pair(layer.stride)}
    return BilinearDecomposition(
        eigenvalues=eigenvalues[order],
        eigenvectors=(eigenvectors * largest.sign()).view(-1, *shape),
        linear=(direction * right_bias @ left + direction * left_bias @ right).view(shape),
        constant=(direction * left_bias * right_bias).sum(),
        **where,
    )


def _pair(values: str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(values, str)
    height, width = values
    return height, width


def split_direction(direction: Float[Tensor, "C H W"]) -> tuple[Float[Tensor, "K C"], Float[Tensor, "K H W"]]:
    """Split a direction over maps into directions of channels, each with a map of where it is read.

    The singular value decomposition of the direction as a channels x positions matrix (Oozeer et al. 2024):
    direction = sum_k channels_k (x) positions_k, the largest part first. Each row of channels has length 1 and is a
    direction for `decompose`; its result, summed over positions with the map, is that part of the projection.

    Raises:
        ValueError: a direction that is not over maps.
    """
    if direction.ndim != 3:
        raise ValueError(f"the direction is {tuple(direction.shape)}: split what is [channels height width]")
    channels, height, width = direction.shape
    left, sizes, right = torch.linalg.svd(direction.double().view(channels, -1), full_matrices=False)
    return left.T, (sizes.unsqueeze(1) * right).view(-1, height, width)


def filter_images(filters_FCKK: Float[Tensor, "F 3 K K"]) -> list[UInt8[Tensor, "K K 3"]]:
    """Filters over colours as images: grey is zero, and each filter's largest entry is full light or none.

    Raises:
        ValueError: filters over something else than colours.
    """
    if filters_FCKK.ndim != 4 or filters_FCKK.shape[1] != 3:
        raise ValueError(
            f"filters of shape {tuple(filters_FCKK.shape)} read no colours: only the first layer's can be shown"
        )
    largest = filters_FCKK.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    images = (filters_FCKK / largest * 127.5 + 127.5).round().to(torch.uint8)
    return list(images.permute(0, 2, 3, 1).cpu())


def draw_eigenfilters(
    decompositions: Sequence[BilinearDecomposition], headings: Sequence[str], number: int = 4
) -> UInt8[Tensor, "H W 3"]:
    """A sheet of the first layer's eigenfilters, a row for each direction: what raises it, and what lowers it.

    An eigenfilter and its negative do the same, so read its colours as a contrast.

    Args:
        decompositions: of `conv1a`, towards the directions to show.
        headings: their names.
        number: eigenfilters shown of each sign.
    """
    rows = []
    for decomposition, heading in zip(decompositions, headings, strict=True):
        tiles: list[Tile | None] = []
        for sign in (1, -1):
            chosen = (decomposition.eigenvalues * sign > 1e-9).nonzero().squeeze(1)[:number]
            images = filter_images(decomposition.eigenvectors[chosen])
            values = decomposition.eigenvalues[chosen].tolist()
            tiles += [Tile(image, f"{value:+.3g}") for image, value in zip(images, values, strict=True)]
            tiles += [None] * (number - len(chosen))
        rows.append(Row(heading, (), tiles))
    lines = ["each contributes its eigenvalue times the square of its product with the patch; grey is zero"]
    return sheet("Eigenfilters", lines, (("raise it", number), ("lower it", number)), rows)
