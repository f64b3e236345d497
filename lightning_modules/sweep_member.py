"""What a sweep trains, as a configuration says it: autoencoders one by one, or grids of them."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import product
from typing import Any

import torch

from lightning_modules.sae_arguments import check_member
from networks import SAEBase

Value = int | float | str | bool | None


@dataclass
class SweepMember:
    """One autoencoder of a sweep and how it is trained; with a grid several, one for each combination of its values.

    Attributes:
        name: names its metrics and its file; fields in braces are filled in, such as {k} or {seed}.
        sae: the kind, as `ConvSAE` takes it.
        expansion: latents per channel.
        kernel_size: odd width of the convolutions' window; above 1 training needs whole maps.
        seed: of its first weights.
        learning_rate: Adam's, at its height.
        resample_every: steps between revivals; null for none.
        auxk_coefficient: weight of the AuxK loss; null for none.
        auxk_latents: dead latents that AuxK lets an input use; null for half the channels.
        grid: lists of values for the fields above and for the kind's own arguments.

    Raises:
        ValueError: an argument out of its range.
    """

    name: str
    sae: Callable[[int, int, int], SAEBase]
    expansion: int = 4
    kernel_size: int = 1
    seed: int = 0
    learning_rate: float = 1e-2
    resample_every: int | None = None
    auxk_coefficient: float | None = None
    auxk_latents: int | None = None
    grid: Mapping[str, Sequence[Value]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_member(
            self.learning_rate, self.resample_every, self.auxk_coefficient, self.auxk_latents, where=f"{self.name}: "
        )

    def make(self, channels: int) -> SAEBase:
        """The autoencoder with its first weights, which are those that it would have in a run of its own with this
        seed; the generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.sae(channels, self.expansion, self.kernel_size)


def expand(entries: Sequence[SweepMember], channels: int | None) -> list[SweepMember]:
    """The members, one for each autoencoder, tried out on so many channels (null for not known yet) without memory.

    Raises:
        ValueError: no member, two of the same name, a name that is none for a file, a field of a name or of a grid that
            there is not, or arguments that a kind refuses.
    """
    members = [member for entry in entries for member in _combinations(entry)]
    if not members:
        raise ValueError("model.init_args.members is empty: name one autoencoder at least")
    for member in members:
        try:
            with torch.device("meta"):  # 4096 is plenty
                member.make(channels or 4096)
        except ValueError as error:
            raise ValueError(f"model.init_args.members: {member.name}: {error}") from error
    names = [member.name for member in members]
    for name in names:
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            raise ValueError(f"model.init_args.members: {name!r} is no name for a file: use letters, digits, . _ + -")
        if names.count(name) > 1:
            raise ValueError(
                f"model.init_args.members: {names.count(name)} members are named {name}: "
                "say in braces what they differ in, such as topk_{k}"
            )
    return members


def _combinations(entry: SweepMember) -> list[SweepMember]:
    """One member for each combination of the grid's values, or the entry itself."""
    own = {item.name for item in fields(entry)} - {"name", "sae", "grid"}
    members = []
    for values in product(*entry.grid.values()):
        chosen = dict(zip(entry.grid, values, strict=True))
        settings: dict[str, Any] = {key: value for key, value in chosen.items() if key in own}
        arguments = {key: value for key, value in chosen.items() if key not in own}
        _check(entry, arguments)
        sae = partial(entry.sae, **arguments) if arguments else entry.sae
        member = replace(entry, sae=sae, grid={}, **settings)
        members.append(replace(member, name=_filled_in(entry.name, vars(member) | chosen)))
    return members


def _check(entry: SweepMember, arguments: Mapping[str, Value]) -> None:
    """Whether the kind takes such arguments."""
    with torch.device("meta"):
        kind = type(entry.sae(4096, 1, 1))
    accepted = {name: item for name, item in inspect.signature(kind).parameters.items() if name != "in_channels"}
    for name, value in arguments.items():
        if name not in accepted:
            raise ValueError(
                f"model.init_args.members: grid of {entry.name} has {name}, which neither a member nor "
                f"{kind.__name__} takes; there are: {', '.join(accepted)}"
            )
        if accepted[name].annotation is int and type(value) is not int:
            raise ValueError(f"model.init_args.members: grid of {entry.name}: {name} {value!r} is no whole number")


def _filled_in(name: str, values: Mapping[str, Any]) -> str:
    try:
        return name.format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"model.init_args.members: {name} has in braces what is not in the grid of that entry ({error}): "
            f"there are {', '.join(key for key in values if key not in ('name', 'sae', 'grid'))}"
        ) from error
