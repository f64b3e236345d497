"""Steering along what a tap says of entities: a reading of each at each position, and a direction that writes it.

An edit adds, at every position of a map (or to a flat tap), directions times what is read there: the asked entity's
everywhere, or only where it is read, the others' taken away where they are read, or two exchanged. Readings are linear,
of the tap or of an autoencoder's latents, and lie in 0 to 1; where the directions come from is another matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from environments.heist import ENTITIES, Labels
from interpretability.bilinear_decomposition import decompose
from interpretability.perception import SEEN, Ridge
from interpretability.row_edits import RowEdit
from interpretability.unit_numbers import entity_positions
from interpretability.value_counts import ValueCounts, binned_auc
from networks.bilinear_impala import BilinearConv2d, BilinearLinear
from networks.sae_base import SAEBase
from networks.taps import TappedAgent

EMPTY: Final = len(SEEN)
OPERATIONS: Final = ("add", "raise", "remove", "swap")


class Reader(nn.Module):
    """Reads each entity of `SEEN` in 0 to 1, at each position of a map, or of a flat tap as what will be touched next.

    Args:
        weight, bias: of the features.
        sae: whose latents the features are; the tap itself without it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "K F"], bias: Float[Tensor, " K"], sae: SAEBase | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self._sae = [sae]  # in a list: not a part of this module's parameters

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B K *HW"]:
        with torch.autocast(acts.device.type, enabled=False):
            features = acts.float() if self._sae[0] is None else self._sae[0].encode(acts.float())
            scores = functional.linear(features.movedim(1, -1), self.weight, self.bias)
        return scores.clamp(0, 1).movedim(-1, 1)


class SteerEdit(nn.Module):
    """Edit: acts + strength x (push + mix . reading) . directions, at each position.

    Args:
        reader: of K entities.
        directions: what writes each of them, over channels, or over channels and a window around the position.
        mix: how much of each direction (columns) is added for each entity that is read (rows).
        push: how much of each direction is added whatever is read.
        strength: of all.
    """

    directions: Tensor
    mix: Tensor
    push: Tensor

    def __init__(
        self,
        reader: Reader,
        directions: Float[Tensor, "K C *kk"],
        mix: Float[Tensor, "K K"],
        push: Float[Tensor, " K"],
        strength: float,
    ) -> None:
        super().__init__()
        self.reader, self.strength, self.num_units = reader, strength, directions.shape[1]
        self.register_buffer("directions", directions.float())
        self.register_buffer("mix", mix.float())
        self.register_buffer("push", push.float())

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        return acts + self.change(acts)

    def change(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        """What the edit adds."""
        with torch.autocast(acts.device.type, enabled=False):
            amounts = self.strength * (self.reader(acts).movedim(1, -1) @ self.mix + self.push)
            if acts.ndim == 2 or self.directions.ndim == 2:
                added = (amounts @ self.directions).movedim(-1, 1)
            else:
                middle = self.directions.shape[-1] // 2
                added = functional.conv_transpose2d(amounts.movedim(-1, 1), self.directions, padding=middle)
        return added.to(acts.dtype)


class EditOfEach(RowEdit):
    """Edit by row: a list of edits, of which each row undergoes its trial's.

    Rows of one trial that follow each other in a list of episodes are played together, so that a batch holds few.
    """

    def __init__(self, edits: Sequence[nn.Module]) -> None:
        super().__init__()
        self.edits = nn.ModuleList(edits)

    @property
    def num_trials(self) -> int:
        """How many there are."""
        return len(self.edits)

    def forward(self, acts: Float[Tensor, "B C *HW"]) -> Float[Tensor, "B C *HW"]:
        assert len(self.trials) == len(acts), "assign says which trial each row undergoes"
        edited = acts.clone()
        for trial in self.trials.unique().tolist():
            rows = self.trials == trial
            edited[rows] = self.edits[trial](acts[rows])
        return edited


def operation(name: str, asked: int, preferred: int) -> tuple[Float[Tensor, "K K"], Float[Tensor, " K"]]:
    """(mix, push) of an operation for the asked entity; it is exchanged with the preferred one.

    `add` writes it everywhere, `raise` once more where it is read, `remove` takes the others away where they are read,
    `swap` writes each of the two where the other is read, and takes that away.

    Raises:
        ValueError: another name.
    """
    mix, push = torch.zeros(EMPTY, EMPTY), torch.zeros(EMPTY)
    if name == "add":
        push[asked] = 1
    elif name == "raise":
        mix[asked, asked] = 1
    elif name == "remove":
        mix -= torch.eye(EMPTY)
        mix[asked, asked] = 0
    elif name == "swap":
        for one, other in ((asked, preferred), (preferred, asked)):
            mix[one, other] += 1
            mix[one, one] -= 1
    else:
        raise ValueError(f"operation {name!r} is unknown: choose among {', '.join(OPERATIONS)}")
    return mix, push


@dataclass(frozen=True)
class Rows:
    """Rows of a tap with what each is of: positions of maps, or frames of a flat tap.

    Attributes:
        acts: channels.
        classes: index into `SEEN`; `EMPTY` for a position without any (a flat tap has none such).

    Raises:
        ValueError: an entity that was never seen.
    """

    acts: Float[Tensor, "R C"]
    classes: Int[Tensor, " R"]

    def __post_init__(self) -> None:
        counts = torch.bincount(self.classes, minlength=EMPTY)[:EMPTY]
        if missing := [SEEN[number] for number in torch.nonzero(counts == 0).flatten().tolist()]:
            raise ValueError(f"no view shows {missing[0]} (or is followed by it): fit on more mazes")

    def mean(self, entity: int) -> Float[Tensor, " C"]:
        """Of one entity."""
        return self.acts[self.classes == entity].double().mean(0)

    def elsewhere(self) -> Float[Tensor, " C"]:
        """What directions are counted from: the mean where nothing lies, or over all frames."""
        empty = self.classes == EMPTY
        return (self.acts[empty] if empty.any() else self.acts).double().mean(0)


def map_rows(acts: Float[Tensor, "N C H W"], labels: Labels, seed: int = 0, empty: int = 8) -> Rows:
    """Positions in the cells of keys and gem, and of each frame so many in which nothing lies.

    Labels are of heist in a mode whose frame shows the whole world.
    """
    cells, dims = torch.from_numpy(labels.cells).long(), torch.from_numpy(labels.world_dim).long()
    present = entity_positions(cells, dims, *acts.shape[2:])
    rows = acts.permute(0, 2, 3, 1)
    kept = [rows[present[ENTITIES.index(name)]] for name in SEEN]
    classes = [torch.full((len(some),), number) for number, some in enumerate(kept)]
    noise = torch.rand(len(acts), *acts.shape[2:], generator=torch.Generator().manual_seed(seed))
    noise[present.any(0)] = -1
    chosen = noise.flatten(1).topk(empty).indices
    kept.append(rows.flatten(1, 2)[torch.arange(len(acts))[:, None], chosen].flatten(0, 1))
    classes.append(torch.full((len(kept[-1]),), EMPTY))
    return Rows(torch.cat(kept), torch.cat(classes))


def flat_rows(acts: Float[Tensor, "N C"], pursued: Int[np.ndarray, " N"]) -> Rows:
    """Frames with what is touched next in each; those before nothing are left out."""
    known = torch.from_numpy(pursued >= 0)
    return Rows(acts[known], torch.from_numpy(pursued)[known].long())


def probe_reader(rows: Rows) -> Reader:
    """A least-squares probe of one-hot classes."""
    weight, bias = _probe(rows)
    return Reader(weight[:, :EMPTY].T, bias[:EMPTY])


def probe_directions(rows: Rows) -> Float[Tensor, "K C"]:
    """The shortest change with which the probe reads an entity where it read nothing (or all alike), the rest the same.

    That is the pseudo-inverse of the probe's weights.
    """
    weight, _ = _probe(rows)
    count = weight.shape[1]
    wanted = torch.eye(count, dtype=torch.float64)[:EMPTY]
    wanted = wanted - (wanted.new_full((count,), 1 / count) if count == EMPTY else torch.eye(count)[EMPTY])
    return (wanted @ torch.linalg.pinv(weight)).float()


def mean_directions(rows: Rows) -> Float[Tensor, "K C"]:
    """Difference of means: of each entity from where nothing lies, or from all frames."""
    return torch.stack([rows.mean(entity) - rows.elsewhere() for entity in range(EMPTY)]).float()


@torch.no_grad()
def latent_steering(latents: Rows, sae: SAEBase) -> tuple[Reader, Float[Tensor, "K C *kk"], list[int]]:
    """The latent that tells each entity best from all other positions (area under the curve), as reading and direction.

    A reading of 0 is its mean where nothing lies, 1 its mean where the entity does; the direction adds the difference,
    over the decoder's window where that sees more than one position.

    Args:
        latents: rows of maps that were encoded whole, since a wide kernel sees neighbours; or of flat activations.
        sae: that encoded them.
    """
    device, features = sae.mean.device, latents.acts
    every = ValueCounts(features.shape[1])
    every.update(features)
    rest, found = latents.elsewhere(), []
    weight = torch.zeros(EMPTY, features.shape[1])
    window = (sae.kernel_size, sae.kernel_size)
    bias, directions = torch.zeros(EMPTY), torch.zeros(EMPTY, sae.in_channels, *window)
    for entity in range(EMPTY):
        counts = ValueCounts(features.shape[1])
        counts.update(features[latents.classes == entity])
        score = np.nan_to_num(binned_auc(counts.counts, every.counts), nan=0.0)
        unit = int(score.argmax())
        gain = float(latents.mean(entity)[unit] - rest[unit])
        one = torch.zeros(1, features.shape[1], *window, device=device)
        one[0, unit, sae.kernel_size // 2, sae.kernel_size // 2] = 1
        alone = (sae.decode(one) - sae.decode(torch.zeros_like(one)))[0].cpu()
        weight[entity, unit], bias[entity] = 1 / max(gain, 1e-6), -float(rest[unit]) / max(gain, 1e-6)
        directions[entity] = gain * alone  # as decoding lays it around the position: the kernel the other way round
        found.append(unit)
    return Reader(weight, bias, sae), directions[:, :, 0, 0] if window == (1, 1) else directions, found


def layer_behind(agent: TappedAgent, tap: str) -> str | None:
    """The tap whose bilinear layer reads this tap position by position, or row by row; None where there is none."""
    names = [name for name, _ in agent.trunk()]
    place = names.index(tap) if tap in names else len(names)
    following = names[place + 1] if place + 1 < len(names) else ""
    if not following.endswith(".pre"):  # what follows a `.pre` is the rest of its own layer
        return None
    behind = following.removesuffix(".pre")
    layer = getattr(agent, behind, None)
    if isinstance(layer, BilinearConv2d) or (isinstance(layer, BilinearLinear) and len(agent.taps[tap]) == 1):
        return behind
    return None


def eigen_directions(agent: TappedAgent, tap: str, rows: Rows, behind: Rows) -> Float[Tensor, "K C *kk"]:
    """Of the bilinear layer that reads the tap, the eigenfilter of largest magnitude towards each entity.

    That is, towards what the probe of the layer's own output reads it by. As long as the difference of means at the
    tap, and on the side of it that the entity's mean lies on, since an eigenfilter has no sign.

    Args:
        agent: with `layer_behind` the tap.
        tap: where the directions are to be added.
        rows: of the tap.
        behind: of the layer's output.

    Raises:
        ValueError: no bilinear layer reads the tap.
    """
    name = layer_behind(agent, tap)
    if name is None:
        raise ValueError(f"no bilinear layer reads {tap} as it is: eigenfilters need the tap before a bilinear one")
    layer = getattr(agent, name)
    weight, _ = _probe(behind)
    means, found = mean_directions(rows), []
    for entity in range(EMPTY):
        towards = weight[:, entity] - (weight[:, EMPTY] if weight.shape[1] > EMPTY else weight.mean(1))
        pattern = decompose(layer, towards.to(layer.weight.device)).eigenvectors[0].float().cpu()
        middle = pattern if pattern.ndim == 1 else pattern[:, pattern.shape[1] // 2, pattern.shape[2] // 2]
        sign = -1.0 if middle @ means[entity] < 0 else 1.0
        found.append(sign * means[entity].norm() * pattern)
    return torch.stack(found)


def _probe(rows: Rows) -> tuple[Float[Tensor, "C K"], Float[Tensor, " K"]]:
    return Ridge(rows.acts, rows.classes, int(rows.classes.max()) + 1).linear()
