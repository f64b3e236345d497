"""Does an agent go where a unit is made to say that something is? Every unit of a tap, forced at one place."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Bool
from matplotlib.figure import Figure

from environments import EnvironmentSettings, held_out_levels
from interpretability.films import Film
from interpretability.forced_maps import Forcing, resting_values
from interpretability.statistics import Interval, difference_of_means, join_metrics, paired_bootstrap, wilson_interval
from interpretability.unit_maps import played_frames, unit_maps
from networks import DEFAULT_PRECISION, Precision, TappedAgent
from studies.arguments import check_distances, check_not_negative, check_writable
from studies.report import Cell, Report, Study, Table
from studies.spatial_figures import draw_arms, draw_end_map, draw_film, draw_scan, spatial_page
from studies.spatial_scenes import KINDS, Scene, find_scenes, walkable
from studies.spatial_trials import ARMS, SpatialTrials
from studies.subject import choose_device, load_subject

_LOOKED_AT: Final = 8  # scenes for one with much room, to be drawn
_COLUMNS: Final = ["units", "arm", "reached", "low", "high", "forced minus arm", "low", "high"]
_WORDS: Final = {
    "room": "A room without walls, the gem in a corner. What learnt in mazes may be lost in it: see the last arm.",
    "choice": "Mazes in which two of the keys and the gem can be fetched at once, in different directions.",
    "natural": "Levels as they begin.",
}


class SpatialIntervention(Study):
    """Forces each unit of a tap at one place, throughout an episode, and counts how often the agent comes there.

    The edit is static: it knows the place and nothing of the frame. Every unit is tried in the same validation scenes,
    those whose forcing moves the share most are reported on test levels, alone and together. An episode is one level,
    so that the intervals (95 %, Wilson; of differences a bootstrap over scenes) are over levels.

    Writes the page `pages/spatial.html`; for each kind of scene figures of the scan (units sorted), of the arms, and
    of where the agent ends for each forced cell, a film, and the tables `KIND_scan` and `KIND_arms`. Summary, for each
    kind: `spatial/KIND/best`, the share with the unit that came first on validation levels, and `best_ARM` for the
    controls `none`, `sham` (at the mirrored place; for a patch the unit's own map of the beginning), `random_unit`
    (drawn anew for each scene), `noise` (as large in norm, over the whole tap) and the bound `target_there` (the
    entity that the solution fetches first really lies there); `best_minus_ARM` with paired bounds; `best_unit` and
    `best_strength`; `together`, the same of all reported units at once; `all` (of `clear`), of all units
    of the tap; `random_agent_best` and `random_agent_none`,
    of an agent with random weights, whose best unit is chosen in the same way.

    Args:
        agent: path of the agent's weights.
        tap: a map; null for the autoencoder's.
        sae: path of an autoencoder whose latents are forced instead of channels.
        kinds: of scenes: `room`, without walls; `choice`, a maze of two entities; `natural` levels.
        forcing: `peak` puts a unit's height at the place and 0 elsewhere; `clear` silences it within a cell of the
            place (and, as one more set, all units); `patch` puts in the unit's map of the same scene in which the
            target lies at the place. On a tap that falls below 0 a unit's median over the play in which heights are
            measured stands for 0.
        strengths: heights of a peak above 0 (or that median) that are tried, in units of the unit's own; the best for
            each unit on validation levels is kept.
        quantile: of the unit's highest activation in each of the validation frames: its own height; 1 is the maximum.
        whole_cell: a peak covers a whole cell's positions rather than one.
        scan_scenes: validation scenes in which every unit is tried.
        test_scenes: of the figures that are reported.
        reported: how many units are.
        distances: moves from the player to the place, least and greatest.
        max_steps: an episode's.
        starts: places of the player for the map of ends; 0 leaves the map out.
        filmed: scenes of the film; 0 for none.
        frame_levels: validation levels on whose play the heights are measured.
        distribution_mode: of heist.
        seed: of scenes, noise and controls.
        num_environments: scenes played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.
        cache_dir: folder in which arms are kept as they are played: the same command goes on from there.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that is no map, a kind of scene that does not exist,
            a quantile outside 0 to 1, distances that do not rise, numbers below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        tap: str | None = "conv4a",
        sae: str | None = None,
        kinds: tuple[str, ...] = ("choice", "natural"),
        forcing: Forcing = "peak",
        strengths: tuple[float, ...] = (1.0, 4.0),
        quantile: float = 1.0,
        whole_cell: bool = False,
        scan_scenes: int = 48,
        test_scenes: int = 200,
        reported: int = 3,
        distances: tuple[int, int] = (3, 8),
        max_steps: int = 40,
        starts: int = 4,
        filmed: int = 2,
        frame_levels: int = 64,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 128,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
        cache_dir: str = ".cache/spatial_intervention",
    ) -> None:
        numbers = {
            "scan_scenes": scan_scenes, "test_scenes": test_scenes, "reported": reported, "max_steps": max_steps,
            "frame_levels": frame_levels, "num_environments": num_environments, "starts": starts + 1,
            "filmed": filmed + 1, "kinds": len(kinds), "strengths": len(strengths),
        }  # fmt: skip
        for name, number in numbers.items():
            if number < 1:
                raise ValueError(f"{name} is too small: give at least {0 if name in ('starts', 'filmed') else 1}")
        check_not_negative({"seed": seed})
        check_distances(distances)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"there are no {unknown[0]!r} scenes: choose among {', '.join(KINDS)}")
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile {quantile} must lie between 0 and 1")
        self.device = choose_device(device)
        self.agent, self.tap, self.sae = load_subject(agent, sae, tap, self.device)
        if len(self.agent.taps[self.tap]) != 3:
            raise ValueError(f"{self.tap} is flat: a unit can be forced at a place on maps only")
        self.kinds, self.forcing, self.whole_cell = tuple(kinds), forcing, whole_cell
        self.strengths = tuple(strengths) if forcing == "peak" else (1.0,)  # of others there is no height
        self.quantile, self.distances = quantile, distances
        self.scan_scenes, self.test_scenes, self.reported = scan_scenes, test_scenes, reported
        self.max_steps, self.starts, self.filmed, self.frame_levels = max_steps, starts, filmed, frame_levels
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.seed, self.num_environments, self.cache_dir = seed, num_environments, cache_dir
        self.precision: Precision = precision
        check_writable("cache_dir", cache_dir)

    def run(self) -> Report:
        """Measure heights, scan, choose, test."""
        trials = self._trials(self.agent)
        drawn = self._trials(self.agent.untrained(self.seed).to(self.device))
        parts = [self._kind(kind, trials, drawn) for kind in self.kinds]
        summary: dict[str, float] = {}
        tables: dict[str, Table] = {}
        figures: dict[str, Figure] = {}
        films: dict[str, Film] = {}
        for part in parts:
            summary |= part.summary
            tables |= part.tables
            figures |= {name: figure for name, figure in part.figures.items() if isinstance(figure, Figure)}
            films |= part.films
        units = "channel" if self.sae is None else "latent"
        signed = bool(trials.rest.any())
        rest, above = ("its median in play", ", reckoned from that median") if signed else ("0", "")
        told = {
            "peak": f"One position of a {units}'s map is set high, the rest of that map to {rest}, all the other units "
            f"left alone, at every step of the episode: to {' or '.join(f'{each:g}' for each in self.strengths)} times "
            f"what the {units} reaches by itself in play{above}, whichever drew the agent more on validation levels.",
            "clear": f"A {units} is held at {rest} within a cell of the place, at every step of the episode.",
            "patch": f"A {units}'s map is taken from the same scene with the target at the place, and held there.",
        }[self.forcing]
        words = {kind: _WORDS[kind] for kind in self.kinds}
        page = spatial_page(told, words, tables, figures, list(films))
        return Report(summary, tables, figures, films, {"spatial": page})

    def _trials(self, agent: TappedAgent) -> SpatialTrials:
        """What plays this agent; an agent with random weights has no autoencoder."""
        sae = self.sae if agent is self.agent else None
        frames = played_frames(
            agent, held_out_levels("validation", self.frame_levels), settings=self.settings, seed=self.seed,
            num_environments=self.num_environments, precision=self.precision, progress="heights of units",
        )  # fmt: skip
        maps = unit_maps(agent, self.tap, frames, sae=sae, precision=self.precision)
        return SpatialTrials(
            agent, self.tap, sae, maps.amax((2, 3)).quantile(self.quantile, dim=0), resting_values(maps), self.forcing,
            self.whole_cell, self.settings, self.seed, self.num_environments, self.max_steps, self.precision,
            self.cache_dir,
        )  # fmt: skip

    def _scenes(self, kind: str, split: Literal["validation", "test"]) -> list[Scene]:
        count = self.scan_scenes if split == "validation" else self.test_scenes
        return find_scenes(kind, split, count, settings=self.settings, distances=self.distances, seed=self.seed)

    def _rank(self, hits: Bool[np.ndarray, "U S"]) -> list[int]:
        """Units, those first that draw the agent to the place most; of a clearing, that keep it away most."""
        shares = hits.mean(1)
        return np.argsort(shares if self.forcing == "clear" else -shares, kind="stable").tolist()

    def _scan(
        self, trials: SpatialTrials, scenes: Sequence[Scene], title: str
    ) -> tuple[Bool[np.ndarray, "U S"], list[float], SpatialTrials]:
        """Every unit at the strength that moves the agent most; these strengths, and what plays with them."""
        every = np.stack([trials.at(strength).scan(scenes, f"{title}, x {strength:g}") for strength in self.strengths])
        best = every.mean(2).argmax(0)
        strengths = np.array(self.strengths)[best]
        chosen = trials.at(torch.from_numpy(strengths).float())
        return every[best, np.arange(len(best))], strengths.tolist(), chosen

    def _kind(self, kind: str, trials: SpatialTrials, drawn: SpatialTrials) -> Report:
        """Everything of one kind of scenes."""
        scenes = self._scenes(kind, "validation")
        none = trials.unedited(scenes)
        hits, strengths, trials = self._scan(trials, scenes, kind)
        drawn_hits, _, drawn = self._scan(drawn, scenes, f"{kind}, random weights")
        chosen = self._rank(hits)[: self.reported]
        tested = self._scenes(kind, "test")
        sets = {f"unit {unit}": [unit] for unit in chosen}
        sets |= {"together": chosen} if len(chosen) > 1 else {}
        sets |= {"all": list(range(len(hits)))} if self.forcing == "clear" else {}
        shared = {"none": trials.unedited(tested), "target_there": trials.target_there(tested)}
        arms = {name: trials.arms(tested, units) | shared for name, units in sets.items()}
        best = self._rank(drawn_hits)[:1]
        drawn_arms = drawn.arms(tested, best) | {"none": drawn.unedited(tested)}
        intervals = _shares(arms)
        summary = {
            f"spatial/{kind}/best_unit": float(chosen[0]), f"spatial/{kind}/best_strength": strengths[chosen[0]]
        }  # fmt: skip
        for name, of in (("best", f"unit {chosen[0]}"), ("together", "together"), ("all", "all")):
            if of in arms:
                summary |= _metrics(f"spatial/{kind}/{name}", arms[of], self.seed)
        summary |= join_metrics(
            {
                f"spatial/{kind}/random_agent_{name}": _wilson(drawn_arms[arm])
                for name, arm in (("best", "forced"), ("none", "none"))
            }
        )
        title = f"{self.tap}, {self.forcing}, {kind} scenes"
        figures = {
            f"{kind}_scan": draw_scan(
                [_wilson(row) for row in hits], _wilson(none), [_wilson(row) for row in drawn_hits], chosen,
                f"{title}: {len(scenes)} on validation levels",
            ),
            f"{kind}_arms": draw_arms(intervals, f"{title}: {len(tested)} on test levels"),
        }  # fmt: skip
        if self.starts:
            widest = max(tested[:_LOOKED_AT], key=lambda scene: len(walkable(scene.state)))
            ends = trials.end_map(widest, chosen[:1], self.starts)
            figures[f"{kind}_ends"] = draw_end_map(ends, self.settings, f"{title}: unit {chosen[0]}")
        films = {}
        if self.filmed:
            some = tested[: self.filmed]
            shown = {"no edit": trials.visits(some, []), f"unit {chosen[0]}": trials.visits(some, chosen[:1])}
            films[f"{kind}_unit_{chosen[0]}"] = draw_film(some, shown, self.settings)
        tables = {
            f"{kind}_scan": _scan_table(hits, none, strengths, trials.heights.tolist(), self.seed),
            f"{kind}_arms": _arm_table(arms | {f"random weights, channel {best[0]}": drawn_arms}, self.seed),
        }
        return Report(summary, tables, figures, films)


def _wilson(hits: Bool[np.ndarray, " S"]) -> Interval:
    return wilson_interval(int(hits.sum()), len(hits))


def _shares(arms: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Interval]]:
    return {name: {arm: _wilson(hit) for arm, hit in hits.items()} for name, hits in arms.items()}


def _difference(one: np.ndarray, other: np.ndarray, seed: int) -> Interval:
    return paired_bootstrap(difference_of_means, [one, other], seed=seed)


def _metrics(prefix: str, hits: Mapping[str, np.ndarray], seed: int) -> dict[str, float]:
    """The share with the units forced, of each control, and what the forcing adds to it."""
    found = {prefix: _wilson(hits["forced"])}
    for arm, hit in hits.items():
        if arm != "forced":
            found[f"{prefix}_{arm}"] = _wilson(hit)
            found[f"{prefix}_minus_{arm}"] = _difference(hits["forced"], hit, seed)
    return join_metrics(found)


def _scan_table(
    hits: np.ndarray, none: np.ndarray, strengths: Sequence[float], heights: Sequence[float], seed: int
) -> Table:
    rows: list[list[Cell]] = [
        [unit, strengths[unit], heights[unit], *_wilson(row), *_difference(row, none, seed)]
        for unit, row in enumerate(hits)
    ]
    rows.sort(key=lambda row: -float(row[3]))
    columns = ["unit", "strength", "height", "reached", "low", "high", "minus no edit", "low", "high"]
    return Table(columns, rows, printed=False)


def _arm_table(arms: Mapping[str, Mapping[str, np.ndarray]], seed: int) -> Table:
    rows: list[list[Cell]] = []
    for name, hits in arms.items():
        for arm, words in ARMS.items():
            if arm in hits:
                added = ("", "", "") if arm == "forced" else _difference(hits["forced"], hits[arm], seed)
                rows.append([name, words, *_wilson(hits[arm]), *added])
    return Table(_COLUMNS, rows)
