"""Which units follow which entities, wherever the player stands?"""

from typing import Final, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from environments import EnvironmentSettings, State, held_out_levels, render_states
from environments.heist import ENTITIES, empty_room, find_entity, walk_square
from interpretability.episodes import first_states
from interpretability.report_page import Section, percent, report_page
from interpretability.statistics import Interval, grouped_mean, join_metrics, wilson_interval
from interpretability.tracking import TrackingScores, tracking_scores
from networks import TappedAgent, load_agent, load_sae
from studies.arguments import check_at_least_one, check_not_empty, check_not_negative
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

WALKING: Final = tuple(name for name in ENTITIES if name != "player")
LATENTS: Final = "latents"
_COLUMNS: Final = [
    "tap", "unit", "entity", "equivariance", "shuffled", "overlap", "shuffled", "overlap's range", "tracks"
]  # fmt: skip
_SHOWN = 24  # units of a tap on its figure


class EntityTracking(Study):
    """Leads each entity around an empty room, the player fixed in each of several places, and scores every unit.

    Writes the page `pages/tracking.html`, a figure for each tap and the table `units` with, for each tap, unit and
    entity, the equivariance score (cosine between the movements of the entity and of the response's centroid) and the
    overlap score (share of the response within a cell of the entity), each beside its mean under permuted places (see
    `tracking_scores`), and how far the overlap varies with the player's place. Summary, for each tap (and the
    autoencoder's `latents`): `tracking/TAP/ENTITY`, the share of units that track it, `tracking/TAP/several`, of units
    that track more than one, and `tracking/TAP/stable`, of the entities that units track at one place of the player,
    those that they track at every place; each also for an agent with random weights as
    `tracking/TAP/random_agent_...`. With 95 % intervals over units (Wilson's; of `stable` a bootstrap).

    Args:
        agent: path of the agent's weights.
        taps: maps whose channels are scored.
        sae: path of an autoencoder whose latents are scored too.
        rooms: empty rooms, one a validation level (they differ in background and theme).
        steps: places along each walk.
        players: cells of the player, inside or outside the square that is walked.
        shuffles: orders of the places that scores are held against.
        distribution_mode: of heist; its frame has to show the whole world.
        seed: of the shuffles and the random weights.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap (or the autoencoder's) that is no map, a player on the
            walk or outside, a number below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("conv1a", "conv2a", "conv2b", "conv3a", "conv4a"),
        sae: str | None = None,
        rooms: int = 3,
        steps: int = 24,
        players: tuple[tuple[int, int], ...] = ((4, 4), (0, 4), (8, 0)),
        shuffles: int = 999,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        check_at_least_one({"rooms": rooms, "steps": steps, "shuffles": shuffles, "players": len(players)})
        check_not_negative({"seed": seed})
        check_not_empty({"taps": taps})
        where = choose_device(device)
        self.agent = load_agent(agent).to(where)
        self.agent.check_taps(list(taps))
        self.sae = None if sae is None else load_sae(sae, self.agent).to(where)
        read = [*taps, *([] if self.sae is None else [self.sae.tap])]
        if flat := [tap for tap in read if len(self.agent.taps[tap]) != 3]:
            raise ValueError(f"{flat[0]} is flat: an entity can be followed on maps only")
        self.taps, self.rooms, self.steps = tuple(taps), rooms, steps
        self.players, self.shuffles, self.seed = tuple(players), shuffles, seed
        self.settings = EnvironmentSettings("heist", distribution_mode)
        base = State.from_bytes(first_states([0], self.settings)[0])
        for player in self.players:
            _walk(base, WALKING[0], player, steps)  # refuses one in the way

    def run(self) -> Report:
        """Walk, record, score."""
        drawn = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        summary: dict[str, Interval] = {}
        rows: list[list[Cell]] = []
        figures: dict[str, Figure] = {}
        scores = self._scores(self.agent)
        for tap, found in scores.items():
            summary |= _shares(f"tracking/{tap}/", found)
            rows += _rows(tap, found)
            figures[tap] = _draw(tap, found)
        for tap, found in self._scores(drawn).items():
            if tap != LATENTS:
                summary |= _shares(f"tracking/{tap}/random_agent_", found)
        table = Table(_COLUMNS, rows, printed=False)
        names = (*WALKING, "several", "stable")
        counted: list[list[Cell]] = [
            [tap + ", random weights" * bool(arm), *(percent(summary[f"tracking/{tap}/{arm}{n}"]) for n in names)]
            for tap in scores
            for arm in ("", "random_agent_")
            if f"tracking/{tap}/{arm}several" in summary
        ]
        shares = Table(["tap", *names], counted)
        tables = {"shares": shares, "units": table}
        return Report(join_metrics(summary), tables, figures, pages={"tracking": _page(shares, figures)})

    def _scores(self, agent: TappedAgent) -> dict[str, dict[str, list[TrackingScores]]]:
        """By tap and entity, the scores for all places of the player together, and then for each."""
        taps = [*self.taps, *([self.sae.tap] if self.sae is not None and self.sae.tap not in self.taps else [])]
        bases = [
            State.from_bytes(data) for data in first_states(held_out_levels("validation", self.rooms), self.settings)
        ]
        found: dict[str, dict[str, list[TrackingScores]]] = {}
        for name in WALKING:
            walks: dict[str, list[list[Tensor]]] = {}
            places: list[list[np.ndarray]] = []
            for player in self.players:
                states = [_walk(base, name, player, self.steps) for base in bases]
                places.append([_places(walk, name) for walk in states])
                for walk in states:
                    for tap, acts in self._maps(agent, walk, taps).items():
                        walks.setdefault(tap, [[] for _ in self.players])[len(places) - 1].append(acts)
            for tap, of_players in walks.items():
                every = [one for walk in of_players for one in walk]
                parts = [(every, [one for where in places for one in where]), *zip(of_players, places, strict=True)]
                found.setdefault(tap, {})[name] = [
                    tracking_scores(acts, where, bases[0].grid.shape[0], shuffles=self.shuffles, seed=self.seed)
                    for acts, where in parts
                ]
        return {tap: found[tap] for tap in (*self.taps, LATENTS) if tap in found}

    @torch.inference_mode()
    def _maps(self, agent: TappedAgent, walk: list[State], taps: list[str]) -> dict[str, Tensor]:
        frames = torch.from_numpy(render_states([state.to_bytes() for state in walk], self.settings))
        acts = agent.forward(frames.to(next(agent.parameters()).device), record=taps, outputs=False).activations
        maps = {tap: acts[tap].float().cpu() for tap in self.taps}
        if self.sae is not None and agent is self.agent:
            maps[LATENTS] = self.sae.encode(acts[self.sae.tap]).float().cpu()
        return maps


def _walk(base: State, name: str, player: tuple[int, int], steps: int) -> list[State]:
    """The entity around the room, one cell off its edge; the gem waits in a corner, a lock's key is held."""
    side = base.grid.shape[0]
    start = (1, side - 2)
    entities = {name: start} | ({} if name == "gem" else {"gem": (side - 1, side - 1)})
    held = [name.split("_")[0]] if name.endswith("lock") else []
    room = empty_room(base, entities, player=player, held=held)
    return walk_square(room, name, (1, 1), side=side - 3, steps=steps)


def _places(walk: list[State], name: str) -> np.ndarray:
    rows = [state.entities[find_entity(state, name)] for state in walk]
    return np.array([(float(row["x"]), float(row["y"])) for row in rows])


def _shares(prefix: str, found: dict[str, list[TrackingScores]]) -> dict[str, Interval]:
    tracks = np.stack([scores[0].tracks for scores in found.values()])
    single = np.stack([[one.tracks for one in scores[1:]] for scores in found.values()])
    counted = dict(zip(found, tracks, strict=True))
    counted["several"] = tracks.sum(0) > 1
    intervals = {name: wilson_interval(int(stands.sum()), len(stands)) for name, stands in counted.items()}
    anywhere = single.any(1)
    everywhere, units = single.all(1)[anywhere], np.nonzero(anywhere)[1]
    unknown = Interval(np.nan, np.nan, np.nan)
    intervals["stable"] = grouped_mean(everywhere, units) if len(units) else unknown
    return {f"{prefix}{name}": interval for name, interval in intervals.items()}


def _rows(tap: str, found: dict[str, list[TrackingScores]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for name, (scores, *by_player) in found.items():
        spread = np.ptp([one.overlap for one in by_player], axis=0)
        shuffled = scores.shuffled_equivariance, scores.shuffled_overlap
        numbers = np.stack([scores.equivariance, shuffled[0], scores.overlap, shuffled[1], spread], 1).tolist()
        for unit, (row, tracks) in enumerate(zip(numbers, scores.tracks.tolist(), strict=True)):
            rows.append([tap, unit, name, *row, "yes" if tracks else ""])
    return rows


def _draw(tap: str, found: dict[str, list[TrackingScores]]) -> Figure:
    """Overlap of units and entities; those that track are framed. The units of the highest scores, in their order."""
    values = np.stack([scores[0].overlap for scores in found.values()], 1)
    tracks = np.stack([scores[0].tracks for scores in found.values()], 1)
    chosen = np.sort(np.argsort(-(values * (1 + tracks)).max(1))[:_SHOWN])
    figure = Figure(figsize=(0.42 * len(chosen) + 3, 3.6), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values[chosen].T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for row, unit in enumerate(chosen):
        for column in np.flatnonzero(tracks[unit]):
            box = ((row - 0.5, row + 0.5, row + 0.5, row - 0.5, row - 0.5),
                   (column - 0.5, column - 0.5, column + 0.5, column + 0.5, column - 0.5))  # fmt: skip
            axis.plot(*box, color="C1", linewidth=1.5)
    axis.set_xticks(range(len(chosen)), [str(unit) for unit in chosen])
    axis.set_yticks(range(len(found)), [name.replace("_", " ") for name in found])
    axis.set(xlabel="unit", title=f"{tap}: share of the response near the entity; framed: tracks it")
    figure.colorbar(image, label="share of the response", shrink=0.8)
    return figure


def _page(shares: Table, figures: dict[str, Figure]) -> str:
    text = [
        "Each entity is led around an empty room, the player and all else fixed. A unit's response is how far its map "
        "departs from its median over the walk. It tracks the entity if the response's centre moves as the entity "
        "does, and if the response lies near it, both more than with the places of the walk in another order "
        "(false-discovery rate .05 over the units of a tap).",
        "Several: units that track more than one entity. Stable: of the units that track an entity at one place of the "
        "player, the share that does at every one. An agent with random weights stands beside each tap: its filters "
        "see colours too. In per cent, with 95 % intervals over units.",
    ]
    sections = [Section("Shares of units", columns=shares.columns, rows=shares.rows)]
    sections += [
        Section(tap, figures=[(f"the {_SHOWN} units of the highest scores, in the order of their numbers", figure)])
        for tap, figure in figures.items()
    ]
    return report_page("Which units follow which entities", text, sections)
