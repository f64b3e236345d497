"""What one training step of a sweep computes: the step of every member on the same batch, as one piece."""

import copy
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from lightning_modules.sae_kernel import SAEKernel
from lightning_modules.sae_objective import SAEObjective
from networks import Progress

Step = tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]], Int[Tensor, " F"]]


class SweepObjective(nn.Module):
    """The summed loss of several autoencoders on one batch. Each keeps its own parameters, and none of them has a
    gradient from another's loss.

    Members that differ in weights and in fractional settings alone (a sparsity coefficient, a seed) are computed
    together: their parameters are stacked, and `torch.vmap` turns each operation into one for all of them. What decides
    shapes (kind, width, k) parts them. Where operations are short beside the time to start them, as on a GPU, this
    costs little more than one member; on a CPU the arithmetic is the cost, and members one after the other
    find more of their numbers in the cache.

    On a CPU, `kernels` says by index which members `SAEKernel` computes where it can.

    Args:
        members: by name.
        at_once: members computed together; None for all that can be on an accelerator, and one on a CPU.

    Raises:
        ValueError: at_once below 1.
    """

    def __init__(self, members: Mapping[str, SAEObjective], at_once: int | None = None) -> None:
        super().__init__()
        if at_once is not None and at_once < 1:
            raise ValueError(f"members_at_once is {at_once}: at least 1 is needed, or null")
        self.names, self.members = list(members), nn.ModuleList(members.values())
        self.widths = [member.sae.num_latents for member in members.values()]
        self.at_once = at_once
        self.kernels: dict[int, SAEKernel] = {}
        alike: dict[str, list[int]] = {}
        for index, member in enumerate(members.values()):
            alike.setdefault(_form(member), []).append(index)
        self._alike = list(alike.values())

    def forward(
        self, acts: Float[Tensor, "B C *HW"], progress: Progress
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]], Int[Tensor, " F"]]:
        """The loss; what is logged of it, as member/name; on how many inputs each latent fired.

        Args:
            acts: one batch of raw activations.
            progress: of the latents of all members, one member after the other.
        """
        each = [
            Progress(progress.step, frequency, dead)
            for frequency, dead in zip(
                progress.frequency.split(self.widths), progress.dead.split(self.widths), strict=True
            )
        ]
        steps = self._by_kernel(acts, each)
        steps |= self._by_torch(acts, each, [index for index in range(len(each)) if index not in steps])
        losses, numbers, fired = zip(*(steps[index] for index in range(len(self.members))), strict=True)
        named = {
            f"{name}/{key}": value for name, own in zip(self.names, numbers, strict=True) for key, value in own.items()
        }
        return torch.stack(losses).sum(), named, torch.cat(fired)

    def compile(self, dynamic: bool = False) -> None:
        """Compile what torch computes; the kernels are compiled already."""
        self._by_torch = torch.compile(self._by_torch, dynamic=dynamic)  # type: ignore[method-assign]

    def _by_kernel(self, acts: Tensor, each: Sequence[Progress]) -> dict[int, Step]:
        """The steps of those members that a kernel takes. AuxK is needed only while latents are dead, which changes
        from step to step: such a member is then computed as it is, for what is compiled would be compiled again.
        """
        steps: dict[int, Step] = {}
        for index, kernel in self.kernels.items():
            member, now = self._member(index), each[index]
            terms = kernel.takes(member.sae, acts, now)
            if terms is None:
                continue
            if member.auxk_coefficient is not None and now.dead.any():
                steps[index] = member(acts, now)
                continue
            loss, numbers, fired = kernel(member.sae, acts, terms)
            if member.auxk_coefficient is not None:
                numbers["auxk_loss"] = torch.zeros_like(loss)
            steps[index] = (loss, numbers, fired)
        return steps

    def _by_torch(self, acts: Tensor, each: Sequence[Progress], chosen: Sequence[int]) -> dict[int, Step]:
        """The steps of the chosen members, those that are alike together."""
        at_once = self.at_once or (1 if acts.device.type == "cpu" else len(self.members))
        steps: dict[int, Step] = {}
        for alike in self._alike:
            left = [index for index in alike if index in chosen]
            for start in range(0, len(left), at_once):
                part = left[start : start + at_once]
                members, now = [self._member(index) for index in part], [each[index] for index in part]
                results = [members[0](acts, now[0])] if len(part) == 1 else _together(members, acts, now)
                steps |= dict(zip(part, results, strict=True))
        return steps

    def _member(self, index: int) -> SAEObjective:
        return self.members[index]  # type: ignore[return-value]


def _fractions(member: SAEObjective) -> dict[str, float]:
    """The kind's fractional settings, which may differ between members that are computed together; but k decides how
    many are kept.
    """
    config = {name: value for name, value in member.sae.config().items() if name != "k"}
    return {name: value for name, value in config.items() if type(value) is float and hasattr(member.sae, name)}


def _form(member: SAEObjective) -> str:
    """Whatever must be the same for members to be computed together."""
    fractions = _fractions(member)
    config = {name: "fraction" if name in fractions else value for name, value in member.sae.config().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in member.state_dict().items()}
    return repr((type(member.sae), config, shapes, member.auxk_coefficient, member.auxk_latents))


def _together(members: Sequence[SAEObjective], acts: Tensor, progress: Sequence[Progress]) -> list[Step]:
    """The steps of members of one form, by one call of the first one's code on stacked tensors."""
    like = copy.copy(members[0])
    like._modules = dict(like._modules)
    sae = copy.copy(members[0].sae)
    sae._buffers = dict(sae._buffers)
    like._modules["sae"] = sae
    settings = {}
    for name in _fractions(members[0]):
        values = acts.new_tensor([getattr(member.sae, name) for member in members], dtype=torch.float32)
        settings[f"sae.{name}"] = values
        delattr(sae, name)
        sae.register_buffer(name, values[0], persistent=False)
    parameters = _stacked([dict(member.named_parameters()) for member in members])
    buffers = _stacked([dict(member.named_buffers()) for member in members])
    step = progress[0].step

    def one(own: dict[str, Tensor], changing: dict[str, Tensor], given: dict[str, Tensor], latents: Sequence[Tensor]):  # type: ignore[no-untyped-def]
        return functional_call(like, (own, changing, given), (acts, Progress(step, *latents))), changing

    latents = tuple(torch.stack(column) for column in zip(*(now[1:] for now in progress), strict=True))
    (losses, numbers, fired), changed = torch.vmap(one)(parameters, buffers, settings, latents)
    for index, member in enumerate(members):  # what `observe` estimates
        for name, buffer in member.named_buffers():
            buffer.copy_(changed[name][index])
    return [  # copies, for torch.compile does not hand out views of vmapped results
        (losses[index].clone(), {name: values[index].clone() for name, values in numbers.items()}, fired[index].clone())
        for index in range(len(members))
    ]


def _stacked(tensors: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in tensors]) for name in tensors[0]}
