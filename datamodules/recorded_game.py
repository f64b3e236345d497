"""Games as they are recorded: levels of our choosing, and networks that watch every frame of them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from environments import FRAME_SHAPE, State, VectorEnvironment
from environments.heist import STAY, inside_maze
from networks import AgentOutput, Player, Precision, TappedAgent, TappedNetwork, autocast

_HOLD = 4  # steps for which a random opening action is held: single ones hardly leave the start


class Watcher:
    """A network that sees every frame of a game and is told what was done."""

    def __init__(
        self, network: TappedNetwork, count: int, taps: Sequence[str], precision: Precision, device: torch.device
    ) -> None:
        self._precision: Precision = precision
        self._device, self._all = device, np.arange(count)
        self._player: Player = network.player(count, record=taps)
        self.remembers = not isinstance(network, TappedAgent)

    def look(self, frames: UInt8[np.ndarray, "N 64 64 3"], fresh: Bool[np.ndarray, " N"]) -> AgentOutput:
        self._player.begin(np.flatnonzero(fresh))
        with torch.no_grad(), autocast(self._precision, self._device):
            return self._player(torch.from_numpy(frames).to(self._device), self._all)

    def took(self, actions: Int[np.ndarray, " N"]) -> None:
        self._player.took(self._all, actions)


class RecordedGame:
    """N environments on levels of our choosing, so that play depends on nothing but the block's own seeds.

    `levels` [N], `frames` [N 64 64 3] and `inside` (by map size, [N H W]) are those of the frames to act on; `began`
    [N] says whether such a frame is its episode's first, `solved` [N] whether the action before it was rewarded.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        rng: np.random.Generator,
        shapes: set[tuple[int, ...]],
        watchers: Sequence[Watcher],
    ) -> None:
        self._environment, self._rng, self._watchers = environment, rng, watchers
        count = environment.num_environments
        self.levels: Int[np.ndarray, " N"] = np.zeros(count, dtype=np.int32)
        self.frames: UInt8[np.ndarray, "N 64 64 3"] = np.zeros((count, *FRAME_SHAPE), dtype=np.uint8)
        self.began: Bool[np.ndarray, " N"] = np.zeros(count, dtype=bool)
        self.solved: Bool[np.ndarray, " N"] = np.zeros(count, dtype=bool)
        self._fresh: Bool[np.ndarray, " N"] = np.ones(count, dtype=bool)
        self._beside: list[AgentOutput] = []
        self.inside: dict[tuple[int, ...], Bool[np.ndarray, "N H W"]] = {
            shape: np.zeros((count, *shape), dtype=bool) for shape in shapes
        }

    def begin(self, random_start: int) -> None:
        """Put every environment on a new level and let it take its random number of random steps."""
        count = len(self.levels)
        self._place(np.arange(count))
        self._fresh = np.ones(count, dtype=bool)
        moving = self._rng.integers(random_start + 1, size=count)
        actions = np.full(count, STAY)
        for step in range(random_start):
            if step % _HOLD == 0:
                actions = self._rng.integers(self._environment.num_actions, size=count)
            for watcher in self._watchers:
                if watcher.remembers:
                    watcher.look(self.frames, self._fresh)
            self.act(np.where(step < moving, actions, STAY))

    def look(self) -> AgentOutput:
        """What the agent makes of the frames to act on; whoever is beside it sees them too, recorded or not."""
        output, *self._beside = [watcher.look(self.frames, self._fresh) for watcher in self._watchers]
        return output

    def look_beside(self) -> AgentOutput:
        """What the other network made of them."""
        return self._beside[0]

    def act(self, actions: Int[np.ndarray, " N"]) -> None:
        """Step; an environment whose episode ended goes on with a new level."""
        self._environment.act(actions)
        for watcher in self._watchers:
            watcher.took(actions)
        reward, self.frames, self.began = self._environment.observe()
        self.solved, self._fresh = reward > 0, self.began
        if self.began.any():
            self._place(np.flatnonzero(self.began))

    def _place(self, slots: Int[np.ndarray, " n"]) -> None:
        settings = self._environment.settings
        self.levels[slots] = settings.start_level + self._rng.integers(settings.num_levels, size=len(slots))
        self._environment.play_levels(self.levels[slots], slots.tolist())
        _, self.frames, _ = self._environment.observe()
        if self.inside:
            states = [State.from_bytes(state) for state in self._environment.get_states(slots.tolist())]
            for (height, width), mask in self.inside.items():
                mask[slots] = inside_maze(states, height, width)

    def states(self) -> list[bytes]:
        """The saved states behind the frames."""
        return self._environment.get_states()
