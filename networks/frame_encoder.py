"""The lower part of an agent, up to a tap: what turns frames into one vector of features each."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from networks.taps import ENCODER, Edit, TappedAgent


class FrameEncoder(nn.Module):
    """An agent's layers up to a tap; those above it are kept, unused and frozen, so that its weights load by name.

    Args:
        agent: whose layers.
        tap: whose activation, flattened, are a frame's features.
        frozen: keep the weights as they are.

    Attributes:
        taps: `encoder.NAME` of each tap down to that one, with its shape for one frame.
        features: how many a frame has.

    Raises:
        ValueError: a tap that the agent does not have.
    """

    def __init__(self, agent: TappedAgent, tap: str, frozen: bool) -> None:
        super().__init__()
        agent.check_taps([tap])
        self.agent, self.tap, self.frozen = agent, tap, frozen
        names = list(agent.taps)
        self.taps = {f"{ENCODER}{name}": agent.taps[name] for name in names[: names.index(tap) + 1]}
        self.features = int(torch.Size(agent.taps[tap]).numel())
        self.agent.requires_grad_(False)
        if not frozen:
            for module in self._used():
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_()

    def _used(self) -> list[nn.Module]:
        """The agent's layers that run on the way to the tap."""
        ran: list[nn.Module] = []
        hooks = [layer.register_forward_hook(lambda layer, *_: ran.append(layer)) for layer in self.agent.modules()]
        with torch.no_grad():
            self.agent(torch.zeros(1, 64, 64, 3), record=(self.tap,), outputs=False)
        for hook in hooks:
            hook.remove()
        return ran

    def forward(
        self,
        frames: Shaped[Tensor, "R 64 64 3"],
        record: Sequence[str] = (),
        edits: Sequence[Edit] = (),
    ) -> tuple[Float[Tensor, "R F"], dict[str, Tensor]]:
        """Features, and the recorded activations by their names here; names of other parts are passed over."""
        wanted = tuple(name.removeprefix(ENCODER) for name in record if name in self.taps)
        own = [(name.removeprefix(ENCODER), edit) for name, edit in edits if name in self.taps]
        found = self.agent(frames, record=(*wanted, self.tap), edits=own, outputs=False).activations
        return found[self.tap].flatten(1), {f"{ENCODER}{name}": found[name] for name in wanted}
