"""A vectorised procgen environment with level selection and states, over gym3."""

import contextlib
import dataclasses
import gc
import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from environments.levels import TRAINING_COUNT, TRAINING_START
from environments.state import END_MARKER, State

DistributionMode = Literal["easy", "hard", "extreme", "memory"]
FRAME_SHAPE = (64, 64, 3)
NUM_ACTIONS = 15
_FUNCTIONS = ("libenv_act", "libenv_observe", "libenv_close", "get_state", "set_state")
_MAX_STATE_BYTES = 2**20
# From the games' own source: elsewhere procgen ends the whole process.
_GAMES_WITH = {
    "memory": ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner"),
    "extreme": ("chaser", "dodgeball", "leaper", "starpilot"),
}


@dataclasses.dataclass(frozen=True)
class EnvironmentSettings:
    """What is played: primitives only, so that it can be hashed, saved beside weights and written in YAML.

    Attributes:
        game: any procgen game.
        distribution_mode: procgen's difficulty.
        start_level: first level seed that a reset may draw.
        num_levels: how many seeds from there on; 0 would let procgen ignore `start_level`, so it is refused.
        num_threads: procgen's own stepping threads, which change the speed and nothing else; null takes one for
            each CPU that this process may use, divided among the processes that share the machine.
    """

    game: str = "heist"
    distribution_mode: DistributionMode = "easy"
    start_level: int = TRAINING_START
    num_levels: int = TRAINING_COUNT
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if self.num_levels < 1 or self.start_level < 0 or self.start_level + self.num_levels > 2**31 - 1:
            raise ValueError(
                f"start_level {self.start_level} with num_levels {self.num_levels} is no range of level seeds: "
                "both must be positive and end below 2**31 (num_levels 0 would make procgen ignore start_level)"
            )
        if self.num_threads is not None and self.num_threads < 0:  # procgen would end the whole process
            raise ValueError(f"num_threads is {self.num_threads}: give at least 0, or null for one a CPU")

    def as_dict(self) -> dict[str, str | int | None]:
        """The settings by name."""
        return dataclasses.asdict(self)


def stepping_threads(settings: EnvironmentSettings, num_environments: int) -> int:
    """The settings' own, or what CPUs this process may use, but no more than one an environment."""
    if settings.num_threads is not None:
        return settings.num_threads
    told = os.environ.get("LOCAL_WORLD_SIZE")  # torchrun says how many share the machine
    if told is None and "SLURM_JOB_ID" not in os.environ:  # which gives each its own CPUs
        told = os.environ.get("WORLD_SIZE")  # Lightning, that starts them itself, says how many there are
    processes = int(told or 1)
    return max(1, min(len(os.sched_getaffinity(0)) // processes, num_environments))


class VectorEnvironment:
    """N procgen environments stepped together.

    `observe` and `act` alternate as in gym3: `observe` gives the reward of the last action, the frame to act on and
    whether that frame is the first of an episode (the reset happens inside the terminal step, so the reward beside
    `first` belongs to the episode that ended). procgen is not fork-safe: make it in the process that uses it.

    Args:
        settings: what is played.
        num_environments: N.
        seed: fixes the sequence of levels and every random choice of the games.

    Raises:
        ValueError: an unknown game or distribution mode.
    """

    num_actions = NUM_ACTIONS

    def __init__(self, settings: EnvironmentSettings, num_environments: int, seed: int = 0) -> None:
        # gym, which procgen imports only to register itself, prints a notice on import.
        with contextlib.redirect_stderr(io.StringIO()):
            from procgen.env import ENV_NAMES
        if settings.game not in ENV_NAMES:
            raise ValueError(f"procgen has no game {settings.game!r}: choose one of {', '.join(ENV_NAMES)}")
        if settings.distribution_mode not in get_args(DistributionMode):
            raise ValueError(
                f"there is no distribution mode {settings.distribution_mode!r}: "
                f"choose one of {', '.join(get_args(DistributionMode))}"
            )
        games = _GAMES_WITH.get(settings.distribution_mode, ENV_NAMES)
        if settings.game not in games:
            raise ValueError(
                f"procgen has no distribution mode {settings.distribution_mode!r} for {settings.game}, "
                f"only for {', '.join(games)}"
            )
        if num_environments < 1:
            raise ValueError(f"num_environments is {num_environments}: at least 1 is needed")
        self.settings = settings
        self.num_environments = num_environments
        self._env = self._make(num_environments, seed=seed, num_threads=stepping_threads(settings, num_environments))
        self._nursery: Any = None
        # get_state is C code that holds no lock of Python's: two workers halve its cost.
        self._workers = ThreadPoolExecutor(2)
        self._buffers = [self._env._ffi.new(f"char[{_MAX_STATE_BYTES}]") for _ in range(2)]

    def _make(self, num_environments: int, seed: int, num_threads: int) -> Any:
        from procgen import ProcgenGym3Env

        settings = self.settings
        # cffi looks a function up under a lock at its first use. Garbage that is collected meanwhile may be another
        # environment, whose end looks one up, too, and waits for ever: so all are looked up here, without collecting.
        collecting = gc.isenabled()
        gc.disable()
        try:
            environment = ProcgenGym3Env(
                num=num_environments,
                env_name=settings.game,
                distribution_mode=settings.distribution_mode,
                start_level=settings.start_level,
                num_levels=settings.num_levels,
                rand_seed=seed % (2**31 - 1),
                num_threads=num_threads,
            )
            for name in _FUNCTIONS:
                getattr(environment._c_lib, name)
            return environment
        finally:
            if collecting:
                gc.enable()

    def observe(
        self,
    ) -> tuple[Float32[np.ndarray, " N"], UInt8[np.ndarray, "N 64 64 3"], Bool[np.ndarray, " N"]]:
        """Reward of the last action, frames to act on, and which frames begin an episode."""
        reward, observation, first = self._env.observe()
        return reward, observation["rgb"], first.astype(bool)

    def act(self, actions: Int[np.ndarray, " N"]) -> None:
        """Step every environment; action -1 forces the next level."""
        self._env.act(np.asarray(actions, dtype=np.int32))

    def get_states(self, slots: Sequence[int] | None = None) -> list[bytes]:
        """The saved states of the given slots (all by default); `State.from_bytes` reads them."""
        chosen = list(range(self.num_environments)) if slots is None else list(slots)
        middle = (len(chosen) + 1) // 2
        halves = self._workers.map(self._read_states, (chosen[:middle], chosen[middle:]), self._buffers)
        return [state for half in halves for state in half]

    def _read_states(self, slots: Sequence[int], buffer: Any) -> list[bytes]:
        env, ffi = self._env, self._env._ffi
        states = []
        for slot in slots:
            length = env.call_c_func("get_state", slot, buffer, _MAX_STATE_BYTES)
            states.append(bytes(ffi.buffer(buffer, length)))
        return states

    def set_states(self, states: Sequence[bytes], slots: Sequence[int] | None = None) -> None:
        """Put saved or edited states into the given slots (all by default); their frames are rendered anew.

        Raises:
            ValueError: not one state a slot, or bytes that are no whole state of this game, at which procgen would end
                the process.
        """
        chosen = range(self.num_environments) if slots is None else slots
        if len(states) != len(chosen):
            raise ValueError(f"{len(states)} states for {len(chosen)} slots: give one state a slot")
        name = self.settings.game.encode()
        begin = struct.pack("<i", len(name)) + name  # after the version
        if not all(state.startswith(begin, 4) and state.endswith(END_MARKER) for state in states):
            raise ValueError(
                f"these are not all whole states of {self.settings.game}: pass what get_states() of that game returned"
            )
        for slot, state in zip(chosen, states, strict=True):
            self._env.call_c_func("set_state", slot, state, len(state))

    def play_levels(self, seeds: Sequence[int] | Int[np.ndarray, " n"], slots: Sequence[int] | None = None) -> None:
        """Start level `seeds[i]` in slot `slots[i]`; the next `observe` shows its first frame with `first` set.

        Slots that are not named keep their episode and their frame. When a placed level ends, the slot plays the
        same level again until it is given another.

        Raises:
            ValueError: not one seed a slot, or one that is no level's.
        """
        chosen = range(self.num_environments) if slots is None else slots
        if len(seeds) != len(chosen):
            raise ValueError(f"{len(seeds)} level seeds for {len(chosen)} slots: give one seed a slot")
        if wrong := [int(seed) for seed in seeds if not 0 <= seed < 2**31 - 1]:
            raise ValueError(f"{wrong[0]} is no level seed: give 0 to {2**31 - 2}")
        self.set_states([self._first_state(int(seed)) for seed in seeds], chosen)

    def _first_state(self, seed: int) -> bytes:
        """The state in which a level begins, made in an environment aside: only a step makes a level."""
        if self._nursery is None:
            self._nursery = self._make(1, seed=0, num_threads=0)
        state = State.from_bytes(self._nursery.callmethod("get_state")[0])
        state.fields.update(level_seed_low=seed, level_seed_high=seed + 1)
        self._nursery.callmethod("set_state", [state.to_bytes()])
        self._nursery.act(np.array([-1]))
        return bytes(self._nursery.callmethod("get_state")[0])

    def close(self) -> None:
        """Free procgen's memory and the worker threads."""
        self._workers.shutdown()
        self._env.close()
        if self._nursery is not None:
            self._nursery.close()
