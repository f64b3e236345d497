"""What probes are fitted on: all taps' activations of the same labelled frames, of the agent and of its controls."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from lightning.pytorch import LightningDataModule
from torch import Tensor

from datamodules.cache import ActivationCache, refuse_if_too_large
from datamodules.probe_batch import PIXELS, PIXELS_PCA, Examples, ProbeBatch, Split, Subject, SubjectLoader
from datamodules.recorder import PlaySettings, Recorder, Rows
from datamodules.state_recorder import StateEdit, StateRecorder
from environments import FRAME_SHAPE, TEST_LEVELS, VALIDATION_LEVELS, EnvironmentSettings, refuse_held_out
from networks import DEFAULT_PRECISION, Precision, TappedAgent, TappedNetwork, autocast, load_network
from networks.linear_readout import reduce_activations, reduced_shape
from networks.taps import ENCODER

Control = Literal["pixels", "pixels_pca", "random_agent"]
CONTROLS: tuple[Control, ...] = ("pixels", "pixels_pca", "random_agent")
_ENVIRONMENT = EnvironmentSettings()
# few levels teach no rule; in longer play, levels that the agent is stuck in would fill the data
PROBED_PLAY = PlaySettings(environments=64, steps=16, every=4)
_BYTES_OF_LOSSES = 4_000  # of a row: scores, slopes and answers, by 60 outputs of all targets and as many shuffled
_BYTES_OF_SPECTRUM = 4 + 8 + 8 + 16  # of a moment: itself, in float64, of eigenvectors, of LAPACK's workspace
_AT_ONCE = 64  # frames of one pass: of more, maps of 64 x 64 no longer fit into a processor's cache


class ProbeDataModule(LightningDataModule):
    """Frames with labels from a cache on disk, and what the agent's taps, a control agent and the pixels show of them.

    A network that remembers (a decision transformer) is recorded while it plays, and its control beside it on the same
    play; an edited state is to both the first frame of an episode.

    Frames are recorded once, by play of the agent or from edited states, and found again by later runs. Activations
    are computed once in a run, all taps in one pass over the frames, mean-pooled to at most `max_features`, and held in
    memory as bfloat16. Validation levels are for choices, test levels for the figures to report. One process only.

    Args:
        agent: path of the weights of an agent, or of a decision transformer, which plays for its `asked_return`.
        taps: what is probed; null for all but each `NAME.pre` and `value`. Attention patterns and the taps of a
            decision transformer's encoder only if they are named.
        states: null for natural play; or what makes a state to look at from the first state of each level, by path:
            for example `environments.heist.scatter_player`. It names the data `deconfounded` in metrics.
        environment: heist in a mode whose frame shows the whole world (easy, hard); its levels are those of training.
        num_frames, validation_frames, test_frames: frames of each split.
        max_features: of a flattened map.
        controls: what is probed beside the agent on the same frames: the pixels (mean-pooled to `max_features`), the
            leading principal components of those, and the agent's architecture with random weights.
        play: how the agent plays natural frames.
        precision: in which the agents run.
        seed: of training frames and of the control agent's weights.
        cache_dir: folder of all caches.

    Raises:
        ValueError: an argument that cannot be meant, named with the mend.
    """

    def __init__(
        self,
        agent: str,
        taps: list[str] | None = None,
        states: StateEdit | None = None,
        environment: EnvironmentSettings = _ENVIRONMENT,
        num_frames: int = 49_152,
        validation_frames: int = 12_288,
        test_frames: int = 12_288,
        max_features: int = 2_048,
        controls: tuple[Control, ...] = CONTROLS,
        play: PlaySettings = PROBED_PLAY,
        precision: Precision = DEFAULT_PRECISION,
        seed: int = 0,
        cache_dir: str = ".cache/activations",
    ) -> None:
        super().__init__()
        refuse_held_out(environment.start_level)
        if environment.game != "heist" or environment.distribution_mode not in ("easy", "hard"):
            raise ValueError(
                f"probes need labels and frames of the whole world, not {environment.game} in "
                f"{environment.distribution_mode} mode: choose heist, easy or hard"
            )
        self.frames = {"training": num_frames, "validation": validation_frames, "test": test_frames}
        numbers = {"num_frames": num_frames, "validation_frames": validation_frames, "test_frames": test_frames}
        for name, value in {**numbers, "max_features": max_features}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: at least 1 is needed")
        if taps is not None and not taps:
            raise ValueError("taps is empty: name at least one, or give null for all")
        self.agent_path, self.states, self.environment = agent, states, environment
        self.max_features, self.controls, self.play = max_features, tuple(controls), play
        self.precision, self.seed, self.cache_dir = precision, seed, cache_dir
        self._taps, self.done = taps, 0

    @property
    def data_name(self) -> str:
        """`natural` or `deconfounded`, as metrics say."""
        return "natural" if self.states is None else "deconfounded"

    @cached_property
    def agent(self) -> TappedNetwork:
        """The frozen agent or decision transformer, loaded when first asked for."""
        try:
            return load_network(self.agent_path).requires_grad_(False)
        except ValueError as error:
            raise ValueError(f"data.init_args.agent: {error}") from error

    @cached_property
    def subjects(self) -> list[Subject]:
        """What is probed, in order: the agent's taps, then the controls.

        Raises:
            ValueError: a tap that the agent does not have, or that is too wide.
        """
        taps = self._taps or [
            name
            for name in self.agent.taps
            if not name.endswith(".pre") and name != "value" and not name.startswith((ENCODER, "attention"))
        ]
        self.agent.check_taps(taps)
        shapes = {tap: self.agent.taps[tap] or (1,) for tap in taps}
        found = [("agent", tap, shape) for tap, shape in shapes.items()]
        height, width, colours = FRAME_SHAPE
        found += [(name, name, (colours, height, width)) for name in (PIXELS, PIXELS_PCA) if name in self.controls]
        if "random_agent" in self.controls:
            found += [("random_agent", tap, shape) for tap, shape in shapes.items()]
        return [Subject(*subject, reduced_shape(subject[2], self.max_features)) for subject in found]

    def prepare_data(self) -> None:
        """Check what is on disk and what would have to fit there and into memory, then record all frames."""
        self._refuse_several_processes()
        self._refuse_if_too_large()
        for cache in self._caches.values():
            cache.check()
        refuse_if_too_large(list(self._caches.values()))
        for cache in self._caches.values():
            cache.build()

    def setup(self, stage: str) -> None:
        """Refuse several processes.

        Raises:
            ValueError: there are several.
        """
        self._refuse_several_processes()

    def _refuse_several_processes(self) -> None:
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ValueError(
                f"probes are fitted in one process, not {self.trainer.world_size}: set trainer.devices to 1"
            )

    def bytes_held(self) -> int:
        """Memory that is held at most at once, beside the program and pages of the caches, which can be dropped.

        That is all activations of a network in bfloat16 and, as one of its taps is fitted in the flat form, its
        features in float32 with each channel's mean beside them, those rows of them again on which penalties are
        chosen, and first second moments with what their eigenvectors take (in float64, where float32 does not
        converge), then the losses of all targets.
        """
        training, fitted = self.frames["training"], self.frames["training"] + self.frames["validation"]
        path = getattr(self.trainer and self.trainer.lightning_module, "path_rows", training)
        rows, losses = fitted + (path if path < training else 0), _BYTES_OF_LOSSES * training
        held, fits = Counter[str](), Counter[str]()
        for network, _, shape, reduced in self.subjects:
            size = int(torch.Size(reduced).numel())
            columns = size + (shape[0] if len(shape) == 3 else 0)
            held[network] += 2 * size
            fits[network] = max(fits[network], 4 * rows * columns + max(_BYTES_OF_SPECTRUM * columns**2, losses))
        return max(max(fitted * size + fits[network], self.frames["test"] * size) for network, size in held.items())

    def _refuse_if_too_large(self) -> None:
        frames, needed = self.frames["training"] + self.frames["validation"], self.bytes_held()
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed > 0.9 * there:
            raise ValueError(
                f"probing {len(self.subjects)} taps and controls on {frames} frames takes {needed / 1e9:.0f} GB of "
                f"memory, this machine has {there / 1e9:.0f}: lower num_frames or max_features, or probe fewer taps"
            )

    def train_dataloader(self) -> "SubjectLoader":
        """Subjects with their training and validation frames, from the first that is not done."""
        return SubjectLoader(self, ("training", "validation"))

    def test_dataloader(self) -> "SubjectLoader":
        """Subjects with their test frames."""
        return SubjectLoader(self, ("test",))

    def transfer_batch_to_device(self, batch: ProbeBatch, device: torch.device, dataloader_idx: int) -> ProbeBatch:
        """Leave a batch, which is all frames, in main memory: each fit takes what it needs to the device."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """How many subjects are done, and what decides them and their frames."""
        return {"done": self.done, **self._fitted_on()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the next subject.

        Raises:
            ValueError: those that are done were other ones, or fitted on other frames or in another precision.
        """
        # Checkpoints of before tell less of this
        same = all(state_dict.get(name, value) == value for name, value in self._fitted_on().items())
        if state_dict["done"] and not same:
            raise ValueError(
                "ckpt_path: the probes of this checkpoint were fitted on other frames, or on taps in another order or "
                "precision: use its own configuration, or start without ckpt_path"
            )
        self.done = state_dict["done"]

    def _fitted_on(self) -> dict[str, Any]:
        """What one run's probes have in common, as primitives."""
        fitted = [cache for split, cache in self._caches.items() if split != "test"]
        return {
            "subjects": [[subject.network, subject.tap, *subject.reduced] for subject in self.subjects],
            "frames": [f"{cache.folder.name}-{cache.frames}" for cache in fitted],
            "precision": self.precision,
        }

    @cached_property
    def random_agent(self) -> TappedNetwork:
        """The agent's architecture with fresh weights, drawn from the seed."""
        return self.agent.untrained(self.seed).requires_grad_(False)

    @cached_property
    def _caches(self) -> dict[str, ActivationCache]:
        held_out = {"validation": VALIDATION_LEVELS, "test": TEST_LEVELS}
        caches = {}
        for split, frames in self.frames.items():
            settings, seed = self.environment, self.seed
            if split in held_out:
                levels, seed = held_out[split], 0
                settings = dataclasses.replace(settings, start_level=levels.start, num_levels=len(levels))
            caches[split] = ActivationCache(
                self.cache_dir, f"{split}-{self.data_name}", self._recorder(settings, seed), frames
            )
        return caches

    def _recorder(self, settings: EnvironmentSettings, seed: int) -> Recorder | StateRecorder:
        if self.states is not None:
            frames = self.play.environments * self.play.steps
            return StateRecorder(settings, self.states, frames_per_block=frames, seed=seed)
        taps: list[str] = []
        beside = None
        if self._remembers:  # what it shows of a frame is known only while it plays
            taps = list(dict.fromkeys([*(s.tap for s in self.subjects if s.network == "agent"), "logits"]))
            beside = self.random_agent if "random_agent" in self.controls else None
        return Recorder(
            self.agent, settings, taps, frames=True, labels=True, beside=beside, precision=self.precision,
            play=self.play, seed=seed, device=self._device,
        )  # fmt: skip

    @property
    def _remembers(self) -> bool:
        return not isinstance(self.agent, TappedAgent)

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")

    @cached_property
    def _shards(self) -> dict[str, list[Rows]]:
        for cache in self._caches.values():
            cache.build()
        return {split: cache.open() for split, cache in self._caches.items()}

    @cached_property
    def _labels(self) -> dict[str, dict[str, np.ndarray]]:
        """Labels of every split, with the agent's likeliest actions."""
        found = {}
        for split, shards in self._shards.items():
            names = [name for name in shards[0] if name.startswith("labels/")]
            labels = {name.removeprefix("labels/"): torch.cat([s[name] for s in shards]).numpy() for name in names}
            found[split] = labels
        return found

    def examples(self, network: str, splits: tuple[Split, ...]) -> dict[str, dict[str, Examples]]:
        """Examples of all subjects of one network: by tap, then by split."""
        taps = {subject.tap: subject.reduced for subject in self.subjects if subject.network == network}
        if network != "agent" and "action" not in self._labels[splits[0]]:  # a resumed run begins at a control
            for split in splits:
                self._activations("agent", split, {})
        found: dict[str, dict[str, Examples]] = {tap: {} for tap in taps}
        for split in splits:
            acts = self._activations(network, split, taps)
            levels = torch.cat([shard["levels"] for shard in self._shards[split]]).long()
            for tap in taps:
                found[tap][split] = Examples(acts.pop(tap), self._labels[split], levels)
        return found

    def tap_features(
        self, tap: str, read: Callable[[Shaped[Tensor, "B C *HW"]], Float[Tensor, "B U"]]
    ) -> dict[Split, Examples]:
        """What a function makes of a tap of the agent, as it is (not mean-pooled first), for every frame.

        Args:
            tap: of the agent.
            read: from a batch of activations to features of each frame.
        """
        found: dict[Split, Examples] = {}
        for split in self.frames:
            parts, actions = [], []
            for acts, chosen in self._passes("agent", split, (tap,)):
                parts.append(read(acts[tap]).cpu())
                actions.append(chosen)
            self._labels[split]["action"] = torch.cat(actions).numpy()
            levels = torch.cat([shard["levels"] for shard in self._shards[split]]).long()
            found[split] = Examples(torch.cat(parts), self._labels[split], levels)  # type: ignore[index]
        return found

    def _activations(self, network: str, split: str, taps: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Reduced activations of every frame of a split; on the agent's first pass its actions become labels too."""
        count = self.frames[split]
        made = {tap: torch.empty(count, *shape, dtype=torch.bfloat16) for tap, shape in taps.items()}
        actions = torch.empty(count, dtype=torch.int64)
        start = 0
        for acts, chosen in self._passes(network, split, tuple(taps)):
            rows = slice(start, start + len(chosen))
            start += len(chosen)
            actions[rows] = chosen
            for tap, shape in taps.items():
                tensor = acts[tap] if acts[tap].ndim > 1 else acts[tap].unsqueeze(1)
                made[tap][rows] = reduce_activations(tensor, shape).to(made[tap].device, torch.bfloat16)
        if network == "agent":
            self._labels[split]["action"] = actions.numpy()
        return made

    def _passes(
        self, network: str, split: str, taps: tuple[str, ...]
    ) -> Iterator[tuple[dict[str, Tensor], Int[Tensor, " B"]]]:
        """Activations of the taps for all frames of a split in order, and the likeliest actions (-1 of pixels)."""
        networks = {"agent": lambda: self.agent, "random_agent": lambda: self.random_agent}
        agent = networks[network]().to(self._device) if network in networks else None
        for shard in self._shards[split]:
            for first in range(0, len(shard["frames"]), _AT_ONCE):
                frames = shard["frames"][first : first + _AT_ONCE]
                if agent is None:
                    yield {network: frames.permute(0, 3, 1, 2)}, torch.full((len(frames),), -1)
                elif self._remembers and self.states is None:
                    acts = _recorded(shard, "activations" if network == "agent" else "beside", first)
                    yield acts, acts["logits"].argmax(1)
                else:
                    every = np.arange(len(frames))
                    player = agent.player(len(frames), record=taps)
                    player.begin(every)
                    with torch.no_grad(), autocast(self.precision, self._device):
                        output = player(frames.to(self._device), every)
                    assert output.logits is not None
                    yield output.activations, output.logits.argmax(1).cpu()


def _recorded(shard: Rows, group: str, first: int) -> dict[str, Tensor]:
    """What was recorded of some frames, by tap, with channels first."""
    rows = slice(first, first + _AT_ONCE)
    names = [name for name in shard if name.startswith(f"{group}/")]
    found = {name.removeprefix(f"{group}/"): shard[name][rows] for name in names}
    return {tap: acts.permute(0, 3, 1, 2) if acts.ndim == 4 else acts for tap, acts in found.items()}
