"""Which units say in which direction the way starts, rather than where the key lies?"""

from functools import partial
from typing import Final, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from environments import EnvironmentSettings, State, held_out_levels
from environments.heist import ACTION_STEPS, DIRECTION_STEPS, DIRECTIONS, QUADRANTS, corner_scenes
from interpretability.directions import (
    MEASURES,
    Selectivity,
    TapScores,
    contrasts,
    exchanged,
    pooled_deviation,
    selectivity,
)
from interpretability.episodes import first_states
from interpretability.report_page import percent
from interpretability.statistics import Interval, bootstrap_interval, join_metrics, wilson_interval
from interpretability.unit_responses import LATENTS, unit_responses
from networks import SAEBase, TappedAgent, load_agent, load_sae
from studies.arguments import check_not_empty, check_not_negative
from studies.directional_page import directional_page, draw_scenes, draw_selectivity, draw_units
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

MAZES: Final = ("corner", "detour")
SHARES: Final = ("first_step", "detour", "directional", "key_side", "plain")
_COLUMNS: Final = [
    "tap", "unit", "direction", "first step", "low", "high", "p", "detour", "low", "high", "p", "key side", "p",
    "directional",
]  # fmt: skip


class DirectionalUnits(Study):
    """Puts a key round a corner, in four orientations and their mirror images, and asks which units tell where to go.

    Eight pictures of a corner in each level, the player in one cell: for each place of the key one way that starts
    along its row and one that starts along its column (see `corner_scenes`). `first_step` compares those two, so a unit
    that sees the key, the gem or one shape of corner does not count; what it may still see is the open floor next to
    the player. `detour` is the same with both ways open there and one cell closed further on. A unit is `directional`
    if it passes both for one direction. `key_side` says which units tell the side on which the key lies, and `plain`
    what a comparison without matched pictures would have called directional. A unit passes if its mean response
    differs by at least `least` standard deviations over levels, and by a permutation test by level, at a
    false-discovery rate of .05 over the units and directions of a tap.

    Writes the page `pages/directions.html`, three figures and the table `units`. Summary: `direction/TAP/MEASURE`, the
    share of units that pass for any direction, with Wilson's interval over units; `.../random_agent_MEASURE` for
    an agent with random weights, `.../exchanged_first_step` with labels exchanged in a random half of the levels;
    `direction/MAZE/right_way` and `.../random_agent_right_way`, the share of scenes in which the agent's expected move
    points in the direction of the first step, over levels: whether it knows its way in such mazes at all.

    Args:
        agent: path of the agent's weights.
        taps: whose units are scored; of a map each channel is one unit.
        sae: path of an autoencoder whose latents are scored too.
        levels: test levels; theme, background, the player's cell, the way's legs and the key's colour differ.
        reading: of a channel: its mean over the map, or its highest value.
        entities: what lies round the corner, in turn.
        least: standard deviations that a unit's mean has to differ by.
        permutations: of each test.
        distribution_mode: of heist; its frame has to show the whole world.
        seed: of scenes, tests and random weights.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap without units, fewer than two levels, a number
            below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("conv1a", "conv2a", "conv2b", "conv3a", "conv4a", "fc1", "fc2", "logits"),
        sae: str | None = None,
        levels: int = 200,
        reading: Literal["mean", "max"] = "mean",
        entities: tuple[str, ...] = ("blue_key", "green_key", "red_key"),
        least: float = 0.8,
        permutations: int = 9_999,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        if levels < 2 or permutations < 1 or not entities:
            raise ValueError(
                f"levels {levels}, permutations {permutations} and entities {list(entities)}: give at least 2, 1 and 1"
            )
        check_not_empty({"taps": taps})
        check_not_negative({"seed": seed})
        where = choose_device(device)
        self.agent = load_agent(agent).to(where)
        self.agent.check_taps(list(taps))
        if scalar := [tap for tap in taps if not self.agent.taps[tap]]:
            raise ValueError(f"{scalar[0]} has no units: choose another tap")
        self.sae = None if sae is None else load_sae(sae, self.agent).to(where)
        self.taps, self.reading, self.entities = tuple(taps), reading, tuple(entities)
        self.least, self.permutations, self.seed = least, permutations, seed
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.levels = held_out_levels("test", levels)
        self._scenes(State.from_bytes(first_states(self.levels[:1], self.settings)[0]), 0)  # refuses wrong entities

    def run(self) -> Report:
        """Build, look, compare."""
        states = [State.from_bytes(data) for data in first_states(self.levels, self.settings)]
        scenes = [scene.to_bytes() for turn, state in enumerate(states) for scene in self._scenes(state, turn)]
        drawn = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        summary: dict[str, Interval] = {}
        scores: dict[str, dict[str, TapScores]] = {}
        for arm, agent, sae in (("", self.agent, self.sae), ("random_agent_", drawn, None)):
            responses = self._responses(agent, sae, scenes, arm)
            for maze, values in zip(MAZES, _right_way(responses["logits"]), strict=True):
                summary[f"direction/{maze}/{arm}right_way"] = bootstrap_interval(values, seed=self.seed)
            scores[arm] = {tap: self._score(responses[tap]) for tap in (*self.taps, LATENTS) if tap in responses}
            for tap, found in scores[arm].items():
                summary |= {f"direction/{tap}/{arm}{name}": share for name, share in _shares(found).items()}
        for tap, found in scores[""].items():
            summary[f"direction/{tap}/exchanged_first_step"] = _share(found.exchanged.stands)
        shares = _share_table(summary, scores)
        rows = [row for tap, found in scores[""].items() for row in _rows(tap, found)]
        figures = {
            "scenes": draw_scenes(scenes[: 2 * len(QUADRANTS) * 4], self.settings),
            "selectivity": draw_selectivity(scores[""], scores["random_agent_"], self.least),
            "units": draw_units(scores[""]),
        }
        way = [[maze, arm or "agent", *summary[f"direction/{maze}/{name}right_way"]]
               for maze in MAZES for arm, name in (("", ""), ("random weights", "random_agent_"))]  # fmt: skip
        competence = Table(["maze", "agent", "moves in the right direction", "low", "high"], way)
        tables = {"shares": shares, "right_way": competence, "units": Table(_COLUMNS, rows, printed=False)}
        page = directional_page(shares, competence, tables["units"], figures, len(self.levels), self.least)
        return Report(join_metrics(summary), tables, figures, pages={"directions": page})

    def _scenes(self, state: State, turn: int) -> list[State]:
        """Corners and then detours of one level; the player stands where all four quadrants have room."""
        rng = np.random.default_rng([self.seed, state.level_seed])
        side = state.grid.shape[0]
        x, y = rng.integers(3, side - 3, 2).tolist()
        reach = (int(rng.integers(2, 4)), int(rng.integers(2, 4)))
        blocked = int(rng.integers(2, sum(reach)))
        entity = self.entities[turn % len(self.entities)]
        return [
            scene
            for closed in (None, blocked)
            for scene in corner_scenes(state, entity, (x, y), reach, closed)
        ]  # fmt: skip

    def _responses(
        self, agent: TappedAgent, sae: SAEBase | None, scenes: list[bytes], arm: str
    ) -> dict[str, Float[np.ndarray, "L 2 4 2 2 U"]]:
        taps = [*self.taps, *(["logits"] if "logits" not in self.taps else [])]
        title = f"corners, {'random weights' if arm else 'agent'}"
        found = unit_responses(agent, scenes, self.settings, taps, self._read, sae=sae, progress=title)
        return {tap: values.reshape(len(self.levels), 2, 4, 2, 2, -1) for tap, values in found.items()}

    def _read(self, acts: Tensor, rows: slice) -> Tensor:
        flat = acts.flatten(2) if acts.ndim > 2 else acts[..., None]
        return flat.mean(2) if self.reading == "mean" else flat.amax(2)

    def _score(self, responses: Float[np.ndarray, "L 2 4 2 2 U"]) -> TapScores:
        score = partial(selectivity, least=self.least, permutations=self.permutations, seed=self.seed)
        mazes: list[dict[str, Selectivity]] = []
        for maze in range(len(MAZES)):
            deviation = pooled_deviation(responses[:, maze])
            found = contrasts(responses[:, maze])
            mazes.append({name: score(found[name], deviation) for name in MEASURES})
            if maze == 0:
                chance = score(exchanged(found["first_step"], self.seed + 1), deviation)
        means = responses.astype(np.float64).mean((0, 4))
        deviation = pooled_deviation(responses)
        profile = (means - means.mean((0, 1, 2))) / np.where(deviation > 0, deviation, np.inf)
        return TapScores(mazes[0], mazes[1], profile, chance)


def _right_way(logits: Float[np.ndarray, "L 2 4 2 2 A"]) -> Float[np.ndarray, "2 L"]:
    """Share of a level's scenes, by maze, in which the expected move points along the way's first step."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    chances = shifted / shifted.sum(-1, keepdims=True)
    moves = chances[..., : len(ACTION_STEPS)] @ np.array(ACTION_STEPS, dtype=np.float64)
    chosen = (moves @ np.array(DIRECTION_STEPS).T).argmax(-1)
    steps = [[DIRECTION_STEPS.index((x, 0)), DIRECTION_STEPS.index((0, y))] for x, y in QUADRANTS]
    return (chosen == np.array(steps)[:, :, None]).mean((2, 3, 4)).T


def _share(stands: np.ndarray) -> Interval:
    """Of units for which any direction stands."""
    any_direction = stands.any(0)
    return wilson_interval(int(any_direction.sum()), len(any_direction))


def _shares(found: TapScores) -> dict[str, Interval]:
    stands = (
        found.corner["first_step"].stands, found.detour["first_step"].stands, found.directional,
        found.corner["key_side"].stands, found.corner["plain"].stands,
    )  # fmt: skip
    return {name: _share(one) for name, one in zip(SHARES, stands, strict=True)}


def _share_table(summary: dict[str, Interval], scores: dict[str, dict[str, TapScores]]) -> Table:
    rows: list[list[Cell]] = []
    for tap, found in scores[""].items():
        for arm, words in (("", "agent"), ("random_agent_", "random weights")):
            if tap in scores[arm]:
                names = [f"direction/{tap}/{arm}{name}" for name in SHARES]
                units = found.corner["plain"].stands.shape[1]
                cells = [percent(summary[name]) for name in names]
                cells.append("" if arm else percent(summary[f"direction/{tap}/exchanged_first_step"]))
                rows.append([tap, words, units, *cells])
    columns = ["tap", "weights", "units", *(name.replace("_", " ") for name in SHARES), "labels exchanged"]
    return Table(columns, rows)


def _rows(tap: str, found: TapScores) -> list[list[Cell]]:
    """A row a unit, of its best direction."""
    first, detour, key = found.corner["first_step"], found.detour["first_step"], found.corner["key_side"]
    best = np.minimum(first.effect, detour.effect).argmax(0)
    rows: list[list[Cell]] = []
    for unit, d in enumerate(best.tolist()):
        step = [float(part[d, unit]) for part in (first.effect, first.low, first.high, first.p)]
        round_way = [float(part[d, unit]) for part in (detour.effect, detour.low, detour.high, detour.p)]
        side = [float(key.effect[d, unit]), float(key.p[d, unit])]
        verdict = "yes" if found.directional[d, unit] else ""
        rows.append([tap, unit, DIRECTIONS[d], *step, *round_way, *side, verdict])
    return rows
