"""The search of the retargeting study: mazes of training levels in, a frontier of edits for an entity out."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from environments import TRAINING_START, EnvironmentSettings, State
from environments.heist import COLOURS, ENTITIES, choice_maze
from interpretability.asked_moves import AskedMoves, asked_moves, own_moves
from interpretability.choices import Choices, play_choices
from interpretability.edit_search import NORM_FRAMES, FoundEdit, change_norm, edit_size, search_edit, search_learned
from interpretability.episodes import first_states
from interpretability.kept import Kept, edit_hashes
from interpretability.perception import CellReader, cell_readers, sample
from networks import Edit, Precision, TappedAgent, save_weights
from networks.channel_edit import MixingEdit, RepaintEdit, TapEdit, load_edit
from networks.weights import read_weights
from studies.arguments import check_at_least_one, check_not_negative
from studies.retargeting_goal import choice_views, readable_maps

_DRAWN = 4  # times as many mazes are looked through for those in which the unedited agent goes elsewhere

ASKED = (*(f"{colour}_key" for colour in COLOURS), "gem")


@dataclass(frozen=True)
class SearchSettings:
    """How edits are searched for; see `search_edit` and `search_learned`.

    Attributes:
        kind: `channels` scales and shifts a few channels; `mixing` reads some directions of channels and writes
            others; `repaint` paints over what a few small detectors see. All do the same at every position.
        mazes: tuning mazes an entity, of training levels; a fourth as many more validate.
        elsewhere: take mazes in which the unedited agent touches something else first, as those are that count in the
            end; of an entity that it hardly ever passes by all that four times as many mazes hold, and others beside.
        places: at which the player is put in each of them.
        unit_counts: sizes of edits that are tried: channels, directions, or detectors.
        kernel: side of the repainting detectors, in positions of the tap.
        written: units that repainting may change; null for all.
        steps: gradient steps of each fit.
        rounds: how often the agent plays with an edit while that is fitted, to learn from its mistakes; not channels.
        played: mazes that it plays each time.
        sparsity: weight of the penalty on the change of channels; the others have none.
        keep_seen: weight of the penalty on the change of what readers of the study's map taps see (`seen_change`), so
            that what is found is an edit of the goal rather than of what is seen; 0 for none; not of channels.
        seen_with: files of edits found before. In untouched play what lies somewhere and how much it is wanted go
            together, so that readers fitted there keep both as they are; those fitted also on play with these edits
            keep what lies there. Only with `keep_seen`.
        keep_outside: weight of the penalty on what is changed outside the asked entity's cell (see `search_learned`),
            so that what is found raises that one, and leaves what else lies there as it is; 0 for none; of maps, and
            not of kind channels.
        keep: taken is the smallest edit that reaches its entity in this part of as many validating mazes as the best,
            and of several taps the earliest that has such a one.
        taps: where edits are searched, instead of at the study's one tap.

    Raises:
        ValueError: a number out of its range.
    """

    kind: Literal["channels", "mixing", "repaint"] = "repaint"
    mazes: int = 800
    elsewhere: bool = False
    places: int = 8
    unit_counts: tuple[int, ...] = (2, 8, 32)
    kernel: int = 3
    written: tuple[int, ...] | None = None
    steps: int = 800
    rounds: int = 4
    played: int = 200
    sparsity: float = 0.02
    keep_seen: float = 0.0
    seen_with: tuple[str, ...] = ()
    keep_outside: float = 0.0
    keep: float = 0.98
    taps: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        counted = ("mazes", "places", "kernel", "steps", "played")
        check_at_least_one({f"search.{name}": getattr(self, name) for name in counted})
        if self.kernel % 2 == 0:
            raise ValueError(f"search.kernel {self.kernel} has no middle: take an odd side")
        if self.written is not None and (self.kind != "repaint" or not self.written or min(self.written) < 0):
            raise ValueError(f"search.written {self.written} names units that repainting may change: leave it null")
        if not self.unit_counts:
            raise ValueError("search.unit_counts is empty: name at least one size of edits")
        check_at_least_one({"search.unit_counts": min(self.unit_counts)})
        check_not_negative({"search.rounds": self.rounds})
        if self.keep_seen < 0 or (self.keep_seen > 0 and self.kind == "channels"):
            raise ValueError(f"search.keep_seen {self.keep_seen} must not be negative, and is not for kind channels")
        if self.seen_with and not self.keep_seen:
            raise ValueError("search.seen_with is for search.keep_seen: set that above 0, or leave it empty")
        if self.keep_outside < 0 or (self.keep_outside > 0 and self.kind == "channels"):
            raise ValueError(
                f"search.keep_outside {self.keep_outside} must not be negative, and is not for kind channels"
            )
        if self.sparsity < 0 or not 0 < self.keep <= 1:
            raise ValueError(f"search.sparsity {self.sparsity} must not be negative, search.keep {self.keep} in 0 to 1")
        if self.taps is not None and len(set(self.taps)) != max(1, len(self.taps)):
            raise ValueError(f"search.taps {self.taps} must name different taps: leave it null for the study's own")

    @property
    def judged(self) -> int:
        """Mazes that validate."""
        return max(1, self.mazes // 4)


class EditSearch:
    """Searches edits of one tap of an agent, on mazes of training levels.

    Args:
        agent, tap: what is edited.
        search: how.
        environment: heist's settings.
        distances: moves to the entities, least and greatest.
        seed: of mazes, noise and fits.
        max_steps: without a touch until here is a failure.
        num_environments, precision: of play.
        cache_dir: folder in which every edit is kept as soon as it is found.
        map_taps: maps in which `search.keep_seen` keeps what is seen; those before the tap do not change anyway.

    Attributes:
        sizes: of edits that are searched; of single channels no more than the tap has.
    """

    def __init__(
        self,
        agent: TappedAgent,
        tap: str,
        search: SearchSettings,
        *,
        environment: EnvironmentSettings,
        distances: tuple[int, int],
        seed: int,
        max_steps: int,
        num_environments: int,
        precision: Precision,
        cache_dir: str | Path,
        map_taps: Sequence[str] = (),
    ) -> None:
        units = agent.taps[tap][0]
        fit = search.kind != "channels"
        self.sizes = sorted({size for size in search.unit_counts if fit or size <= units})
        self.agent, self.tap, self.search = agent, tap, search
        self.settings, self.distances, self.seed = environment, distances, seed
        self.max_steps, self.num_environments = max_steps, num_environments
        self.precision: Precision = precision
        self.map_taps = readable_maps(agent, tap, map_taps) if search.keep_seen > 0 else []
        device = next(agent.parameters()).device
        loaded = [load_edit(path, agent)[1:] for path in search.seen_with]
        self._seen_with: list[Edit] = [(edited, edit.to(device).requires_grad_(False)) for edited, edit in loaded]
        described = dataclasses.asdict(search)
        for without in ("keep", "taps", "unit_counts"):
            described.pop(without)  # they decide nothing about a single edit
        if not search.elsewhere:
            described.pop("elsewhere")  # what was found before there was a choice is found again
        if search.keep_seen > 0:
            described |= {"map_taps": self.map_taps, "seen_with": edit_hashes(self._seen_with)}
        else:
            described.pop("keep_seen")
        if not search.keep_outside:
            described.pop("keep_outside")
        if not self._seen_with:
            described.pop("seen_with")  # likewise
        self._folder = Kept(
            cache_dir,
            {
                "agent": agent.weights_hash, "tap": tap, "search": described, "distances": distances, "seed": seed,
                "mode": environment.distribution_mode, "max_steps": max_steps, "precision": precision,
                "environments": num_environments,
            },
        ).folder  # fmt: skip

    def check(self) -> None:
        """Refuse settings that do not fit the tap.

        Raises:
            ValueError: units or sizes that it does not have.
        """
        units = self.agent.taps[self.tap][0]
        if max(self.search.written or (0,)) >= units:
            raise ValueError(f"search.written {self.search.written}: {self.tap} has units 0 to {units - 1}")
        if self.search.keep_seen > 0 and not self.map_taps:
            raise ValueError(f"search.keep_seen: none of map_taps lies at {self.tap} or behind: name one that does")
        if self.search.keep_outside > 0 and len(self.agent.taps[self.tap]) != 3:
            raise ValueError(f"search.keep_outside: {self.tap} is flat, and no part of it an entity's: set it to 0")
        if not self.sizes:
            raise ValueError(f"search.unit_counts {self.search.unit_counts}: {self.tap} has {units} units, name fewer")

    def __call__(self, entity: str) -> list[FoundEdit]:
        """The frontier of one entity; what is kept is not searched again."""
        sizes = [size for size in self.sizes if not self._path(entity, size).exists()]
        if sizes:
            mazes = self._tuning_mazes(entity)
            found = self._judged(self._fitted(entity, *mazes, sizes), entity, mazes[1])
            for size, one in zip(sizes, found, strict=True):
                known = {"norm": one.norm, "probability": one.probability, "reached": one.reached}
                self.save(one, entity, self._path(entity, size), known)
        return [self._load(self._path(entity, size)) for size in self.sizes]

    def measure(self, entity: str, edit: TapEdit) -> tuple[int, float]:
        """Size and norm of an edit that was found before, on the frames on which one that is found here is measured."""
        enough = 2 * math.ceil(NORM_FRAMES / self.search.places)  # from some places no way leads to the entity
        moves = self._asked(self._tuning_mazes(entity, enough)[0], entity, np.random.default_rng(self.seed))
        return edit_size(edit), change_norm(self.agent, self.tap, edit, moves)

    def metadata(self, entity: str, edit: TapEdit) -> dict[str, Any]:
        """What a file of an edit says of it, for `load_edit`."""
        return {
            "kind": type(edit).__name__, "agent_hash": self.agent.weights_hash, "tap": self.tap, "entity": entity
        }  # fmt: skip

    def save(self, found: FoundEdit, entity: str, path: Path, known: dict[str, float]) -> None:
        """Write an edit."""
        save_weights(path, found.edit, self.metadata(entity, found.edit) | known)

    def _path(self, entity: str, size: int) -> Path:
        return self._folder / f"{entity}_{size}.safetensors"

    def _load(self, path: Path) -> FoundEdit:
        edit, known = load_edit(path, self.agent)[2], read_weights(path)[1]
        edit = edit.to(next(self.agent.parameters()).device).requires_grad_(False)
        return FoundEdit(edit, edit_size(edit), known["norm"], known["probability"], known["reached"])

    def _tuning_mazes(self, entity: str, most: int | None = None) -> tuple[list[State], list[State]]:
        """(mazes to fit on, mazes to judge on), or the first few of them."""
        tuning = self.search.mazes
        count = tuning + self.search.judged
        start = TRAINING_START + ASKED.index(entity) * count * (_DRAWN if self.search.elsewhere else 1)
        if not self.search.elsewhere:
            mazes = self._drawn(entity, start, min(count, most or count))
            return mazes[:tuning], mazes[tuning:]
        wanted: list[State] = []
        others: list[State] = []
        for first in range(start, start + count * _DRAWN, count):
            drawn = self._drawn(entity, first, count)
            touched = self._play(drawn, [], f"{entity}, where the unedited agent goes").touched
            for maze, elsewhere in zip(drawn, touched != ENTITIES.index(entity), strict=True):
                (wanted if elsewhere else others).append(maze)
            if len(wanted) >= count:
                break
        mazes = [*wanted, *others][:count]
        mixed = [mazes[row] for row in np.random.default_rng(self.seed).permutation(count)]
        return mixed[:tuning], mixed[tuning:]

    def _drawn(self, entity: str, start: int, count: int) -> list[State]:
        bases = first_states(range(start, start + count), self.settings)
        return [maze for maze, _ in choice_mazes(bases, self.seed, self.distances, entity)]

    def _play(self, mazes: list[State], edits: list[Edit], progress: str) -> Choices:
        return play_choices(
            self.agent, [maze.to_bytes() for maze in mazes], settings=self.settings, edits=edits, seed=self.seed,
            num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision,
            progress=progress,
        )  # fmt: skip

    def _asked(self, mazes: list[State], entity: str, rng: np.random.Generator) -> AskedMoves:
        return asked_moves(mazes, entity, rng, self.settings, self.agent.taps["logits"][0], self.search.places)

    def _fitted(self, entity: str, tuned: list[State], validated: list[State], sizes: list[int]) -> Iterator[FoundEdit]:
        search, rng = self.search, np.random.default_rng(self.seed)
        parts = [self._asked(part, entity, rng) for part in (tuned, validated)]
        if search.kind == "channels":
            yield from search_edit(
                self.agent, self.tap, *parts, unit_counts=sizes, steps=search.steps,
                sparsity=search.sparsity, seed=self.seed,
            )  # fmt: skip
            return
        units, readers = self.agent.taps[self.tap][0], self._readers(tuned)
        for size in sizes:
            fresh = (
                MixingEdit(units, size, self.seed)
                if search.kind == "mixing"
                else RepaintEdit(units, size, search.kernel, self.seed, search.written)
            )
            times = itertools.count(self.seed + 1)

            def play(edit: TapEdit, times: Iterator[int] = times) -> AskedMoves:
                seed = next(times)
                some = np.random.default_rng([seed, self.seed]).permutation(len(tuned))[: search.played]
                return own_moves(
                    self.agent, [(self.tap, edit)], [tuned[row] for row in some], entity, settings=self.settings,
                    seed=seed, num_environments=self.num_environments, precision=self.precision,
                )  # fmt: skip

            yield from search_learned(
                self.agent, self.tap, {size: fresh}, *parts, steps=search.steps, seed=self.seed, play=play,
                rounds=search.rounds, readers=readers, keep_seen=search.keep_seen, keep_outside=search.keep_outside,
                precision=self.precision, progress=entity,
            )  # fmt: skip

    def _readers(self, mazes: list[State]) -> dict[str, CellReader]:
        """What is to be seen as before, fitted on the unedited agent's play, and on that with the edits given."""
        if not self.map_taps:
            return {}
        samples = []
        for edits in ([], *([edit] for edit in self._seen_with)):
            views = choice_views(
                self.agent, [maze.to_bytes() for maze in mazes], settings=self.settings, seed=self.seed,
                num_environments=self.num_environments, max_steps=self.max_steps, precision=self.precision,
                edits=edits,
            )  # fmt: skip
            samples.append(sample(self.agent, views, self.map_taps, edits=edits, seed=self.seed))
        return cell_readers(samples)

    def _judged(self, found: Iterator[FoundEdit], entity: str, mazes: list[State]) -> Iterator[FoundEdit]:
        """Each with the share of mazes in which it reaches the entity, wherever the unedited agent goes."""
        for one in found:
            played = self._play(mazes, [(self.tap, one.edit)], f"{entity}, judging size {one.size}")
            yield dataclasses.replace(one, reached=float((played.touched == ENTITIES.index(entity)).mean()))


def choice_mazes(
    bases: list[bytes], seed: int, distances: tuple[int, int], entity: str | None = None
) -> list[tuple[State, tuple[str, str]]]:
    """A maze for each level with two entities to choose from, all pairs (with the one entity) in turn."""
    pairs = [pair for pair in combinations(ASKED, 2) if entity is None or entity in pair]
    made: list[tuple[State, tuple[str, str]]] = []
    for number, data in enumerate(bases):
        base, pair = State.from_bytes(data), pairs[number % len(pairs)]
        rng = np.random.default_rng([seed, base.level_seed])
        made.append((choice_maze(base, rng, entities=pair, distances=distances), pair))
    return made
