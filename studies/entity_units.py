"""Which units tell entities apart: each its own, or several by how strongly they are active?"""

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import fisher_exact
from torch import Tensor

from environments import EnvironmentSettings, State, held_out_levels
from environments.heist import ENTITIES, replaced_entities
from interpretability.entity_code import EntityCode, entity_code
from interpretability.episodes import first_states
from interpretability.permutations import discoveries, shuffle_labels
from interpretability.report_page import percent
from interpretability.signed_taps import falls_below_zero
from interpretability.statistics import Interval, bootstrap_interval, join_metrics, wilson_interval
from interpretability.unit_numbers import entity_positions
from interpretability.unit_responses import LATENTS, PIXELS, unit_responses
from networks import SAEBase, TappedAgent, load_agent, load_sae
from studies.arguments import check_not_empty, check_not_negative
from studies.entity_page import draw_bounds, draw_code, draw_levels, draw_pictures, entity_page
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

NAMES: Final = tuple(name for name in ENTITIES if name != "player")
_WORDS: Final = [name.replace("_", " ") for name in NAMES]
KEYS: Final = [NAMES.index(name) for name in ("blue_key", "green_key", "red_key")]
SHARES: Final = ("responds", "identity", "strength_2", "strength_3", "three_keys", "explained")
ARMS: Final = {"": "agent", "random_agent_": "random weights", "shuffled_": "labels shuffled"}

Responses = Float[np.ndarray, "L K1 U"]


class EntityUnits(Study):
    """Puts each key, each lock and the gem into the same place of the same maze and compares what units do there.

    A unit's response is its highest value at the map's positions in the entity's cell and those next to it. On a tap
    that falls below 0 an entity may lower a unit, which the highest value around would hide: there the response is the
    unit's highest or its lowest value, whichever tells entities from the empty place better on validation levels. Of
    each unit: to which entities it responds (its level tells them from the empty place) and how many it tells apart by
    its level alone; see `entity_code`. `identity` is the share of units that respond to exactly one entity,
    `strength_2` and `strength_3` of units that respond to at least two or three entities and tell those apart by how
    active they are (the published claim of multiplexing: one channel's level codes which entity it is), `three_keys` of
    those that tell blue, green and red key apart so; keys differ in nothing but colour. `explained` is the share of
    units with any difference between entities, by a permutation test within levels at a false-discovery rate of .05.

    Whether an entity raises or lowers a unit, the order of entities and the guessing rule come from validation levels,
    all that is reported from test levels. Beside the agent stand an agent with random weights (whose filters see
    colours too), labels shuffled within levels, and the frame's own three colours (`pixels`).

    Writes the page `pages/entities.html`, a figure for each tap, and the table `units`. Summary:
    `entities/TAP/SHARE` with Wilson's interval over units; `entities/TAP/decoded`, how often the entity is guessed
    rightly of seven from one unit's level, meaned over units, and `.../best_decoded` for the unit that separated
    entities best on validation levels, with intervals over levels; each also as `.../random_agent_...`; and as
    `.../shuffled_...`.

    Args:
        agent: path of the agent's weights.
        taps: maps whose channels are scored.
        sae: path of an autoencoder whose latents are scored too.
        levels: of validation, and as many of test.
        reach: cells around the entity's in which the response is looked for.
        others: further entities that lie about, at most 5, the same in all pictures of a level.
        bound: that the area under a ROC curve has to exceed in its whole interval.
        permutations: of each test.
        distribution_mode: of heist; its frame has to show the whole world.
        seed: of pictures, tests and random weights.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap (or the autoencoder's) that is no map, fewer than two
            levels, a bound that is not between .5 and 1, more others than there is room for, a negative reach or seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("conv1a", "conv2a", "conv2b", "conv3a", "conv4a"),
        sae: str | None = None,
        levels: int = 200,
        reach: int = 1,
        others: int = 0,
        bound: float = 0.9,
        permutations: int = 999,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        if levels < 2 or permutations < 1 or not 0.5 <= bound < 1 or not 0 <= others <= 5 or reach < 0:
            raise ValueError(
                f"levels {levels}, permutations {permutations}, bound {bound}, others {others}, reach {reach}: give "
                "at least 2 and 1, .5 to 1, 0 to 5, and at least 0"
            )
        check_not_empty({"taps": taps})
        check_not_negative({"seed": seed})
        where = choose_device(device)
        self.agent = load_agent(agent).to(where)
        self.agent.check_taps(list(taps))
        self.sae = None if sae is None else load_sae(sae, self.agent).to(where)
        read = [*taps, *([] if self.sae is None else [self.sae.tap])]
        if flat := [tap for tap in read if len(self.agent.taps[tap]) != 3]:
            raise ValueError(f"{flat[0]} is flat: an entity's place can be looked up on maps only")
        self.taps, self.reach, self.others, self.bound = tuple(taps), reach, others, bound
        self.permutations, self.seed = permutations, seed
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.levels = {split: held_out_levels(split, levels) for split in ("validation", "test")}

    def run(self) -> Report:
        """Put, look, compare."""
        pictures = {split: self._pictures(levels) for split, levels in self.levels.items()}
        drawn = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        arms: dict[str, dict[str, dict[str, Responses]]] = {
            "": self._responses(self.agent, self.sae, pictures, [PIXELS, *self.taps]),
            "random_agent_": self._responses(drawn, None, pictures, self.taps),
        }
        arms["shuffled_"] = {tap: self._shuffled(splits) for tap, splits in arms[""].items()}
        summary: dict[str, Interval] = {}
        codes: dict[str, dict[str, EntityCode]] = {}
        for arm, taps in arms.items():
            codes[arm] = {
                tap: entity_code(
                    splits["validation"], splits["test"], permutations=self.permutations, seed=self.seed,
                    progress=f"{tap}, {ARMS[arm]}",
                )
                for tap, splits in taps.items()
            }  # fmt: skip
            for tap, code in codes[arm].items():
                summary |= {
                    f"entities/{tap}/{arm}{name}": one for name, one in _measures(code, self.bound, self.seed).items()
                }
        shares = _share_table(summary, codes)
        verdicts = _verdicts(codes, self.bound)
        rows = [row for tap, code in codes[""].items() for row in _rows(tap, code, self.bound)]
        columns = ["tap", "unit", "responds to", "tells apart", "number", "eta squared", "p", "guessed rightly"]
        columns += [f"effect of {name}" for name in _WORDS]
        units = Table(columns, rows, printed=False)
        figures = {"pictures": draw_pictures(pictures["test"][0][: 3 * (len(NAMES) + 1)], self.settings, NAMES)}
        figures["bounds"] = draw_bounds(codes, ARMS, self.bound)
        figures |= {tap: draw_code(tap, code, NAMES, self.bound) for tap, code in codes[""].items()}
        levels = {tap: splits["test"] for tap, splits in arms[""].items()}
        figures["levels"] = draw_levels(levels, codes[""], NAMES, self.bound)
        page = entity_page(shares, verdicts, units, figures, len(self.levels["test"]), self.bound)
        tables = {"shares": shares, "multiplexing": verdicts, "units": units}
        return Report(join_metrics(summary), tables, figures, pages={"entities": page})

    def _pictures(self, levels: range) -> tuple[list[bytes], Tensor]:
        """For each level each entity in the place and then nothing, and the place [N 1 2]."""
        scenes: list[bytes] = []
        places: list[tuple[int, int]] = []
        for data in first_states(levels, self.settings):
            state = State.from_bytes(data)
            rng = np.random.default_rng([self.seed, state.level_seed])
            made, place = replaced_entities(state, rng, NAMES, others=self.others)
            scenes += [one.to_bytes() for one in made]
            places += [place] * len(made)
        return scenes, torch.tensor(places)[:, None]

    def _responses(
        self,
        agent: TappedAgent,
        sae: SAEBase | None,
        pictures: dict[str, tuple[list[bytes], Tensor]],
        taps: Sequence[str],
    ) -> dict[str, dict[str, Responses]]:
        """By tap and split."""
        found: dict[str, dict[str, Responses]] = {tap: {} for tap in (*taps, *([LATENTS] if sae is not None else []))}
        for split, (scenes, places) in pictures.items():
            side = State.from_bytes(scenes[0]).grid.shape[0]

            def read(acts: Tensor, rows: slice, places: Tensor = places, side: int = side) -> Tensor:
                here = places[rows]
                return torch.cat([_peak(acts, here, side, self.reach), -_peak(-acts, here, side, self.reach)], 1)

            title = f"{split} levels, {'agent' if agent is self.agent else 'random weights'}"
            responses = unit_responses(agent, scenes, self.settings, taps, read, sae=sae, progress=title)
            for tap, values in responses.items():
                found[tap][split] = values.reshape(-1, len(NAMES) + 1, values.shape[1])
        return {
            tap: _one_side(splits, tap in agent.taps and falls_below_zero(agent, tap)) for tap, splits in found.items()
        }

    def _shuffled(self, splits: dict[str, Responses]) -> dict[str, Responses]:
        rng = np.random.default_rng([self.seed, 1])
        return {split: shuffle_labels(values, rng) for split, values in splits.items()}


def _peak(acts: Float[Tensor, "B C H W"], places: Tensor, side: int, reach: int) -> Float[Tensor, "B C"]:
    """The highest value at the positions of the cells around a place."""
    span = torch.arange(-reach, reach + 1)
    cells = places + torch.cartesian_prod(span, span).view(-1, 2)
    cells = torch.where(((cells >= 0) & (cells < side)).all(2, keepdim=True), cells, -1)
    near = entity_positions(cells, torch.full((len(places),), side), *acts.shape[2:]).any(0)
    return acts.masked_fill(~near[:, None], -torch.inf).amax((2, 3))


def _one_side(extremes: dict[str, Float[np.ndarray, "L K1 U2"]], signed: bool) -> dict[str, Responses]:
    """By split, of the units' highest values and the lowest ones behind them, the side that is each unit's response.

    One side for all levels: the further of the two in each would be now the one and now the other of a unit that has an
    edge of both signs at an entity.
    """
    tuning = extremes["validation"]
    units = tuning.shape[2] // 2
    differences = np.abs((tuning[:, :-1] - tuning[:, -1:]).mean(0)).sum(0)
    told = differences / np.maximum(tuning.std(0).mean(0), 1e-12)
    lowest = signed & (told[units:] > told[:units])
    return {split: np.where(lowest, both[..., units:], both[..., :units]) for split, both in extremes.items()}


def _measures(code: EntityCode, bound: float, seed: int) -> dict[str, Interval]:
    responds, told = code.responds(bound).sum(0), code.together(bound).sum(0)
    found = (
        responds > 0, responds == 1, told >= 2, told >= 3, code.tells(KEYS, bound), discoveries(code.explained_p)
    )  # fmt: skip
    shares = {name: wilson_interval(int(one.sum()), len(told)) for name, one in zip(SHARES, found, strict=True)}
    best = int(code.rank.argmax())
    return shares | {
        "decoded": bootstrap_interval(code.decoded_by_level.mean(1), seed=seed),
        "best_decoded": bootstrap_interval(code.decoded_by_level[:, best], seed=seed),
    }


def _share_table(summary: dict[str, Interval], codes: dict[str, dict[str, EntityCode]]) -> Table:
    rows: list[list[Cell]] = []
    for tap in codes[""]:
        for arm, words in ARMS.items():
            if tap in codes[arm]:
                names = [f"entities/{tap}/{arm}{name}" for name in (*SHARES, "decoded", "best_decoded")]
                rows.append([tap, words, len(codes[arm][tap].rank), *(percent(summary[name]) for name in names)])
    columns = ["tap", "weights", "units", *(name.replace("_", " ") for name in SHARES), "guessed", "best unit guesses"]
    return Table(columns, rows)


def _verdicts(codes: dict[str, dict[str, EntityCode]], bound: float) -> Table:
    """Is there more multiplexing than with random weights? Fisher's exact test over units, false discoveries held."""
    rows: list[list[Cell]] = []
    directions: list[str] = []
    taps = list(codes["random_agent_"])
    for name in ("strength_2", "strength_3", "three_keys"):
        counts = np.zeros((2, 2, len(taps)), dtype=int)  # agent or random weights; tells them apart or not
        for place, tap in enumerate(taps):
            for row, arm in enumerate(("", "random_agent_")):
                code = codes[arm][tap]
                told = code.together(bound).sum(0)
                found = {"strength_2": told >= 2, "strength_3": told >= 3, "three_keys": code.tells(KEYS, bound)}[name]
                counts[row, :, place] = found.sum(), (~found).sum()
        for tap, table in (*zip(taps, np.moveaxis(counts, 2, 0), strict=True), ("all taps", counts.sum(2))):
            own, drawn = (wilson_interval(int(yes), int(yes + no)) for yes, no in table)
            directions.append("more" if own.value > drawn.value else "fewer")
            rows.append([tap, name.replace("_", " "), percent(own), percent(drawn), float(fisher_exact(table).pvalue)])
    stands = discoveries(np.array([row[-1] for row in rows], dtype=np.float64))
    for cells, direction, stands_out in zip(rows, directions, stands, strict=True):
        cells.append(direction if stands_out else "no difference shown")
    return Table(["tap", "units that tell apart", "agent", "random weights", "p", "than random weights"], rows)


def _rows(tap: str, code: EntityCode, bound: float) -> list[list[Cell]]:
    """A row a unit; entities that it tells apart come from the highest level to the lowest."""
    rows: list[list[Cell]] = []
    responds, together = code.responds(bound), code.together(bound)
    for unit in range(len(code.rank)):
        effects = code.effect[:, unit]
        seen = [_WORDS[k] for k in np.flatnonzero(responds[:, unit])]
        told = [_WORDS[k] for k in np.argsort(-effects) if together[k, unit]]
        named = [", ".join(seen), " > ".join(told) if len(told) > 1 else ""]
        numbers = [float(one[unit]) for one in (code.explained, code.explained_p, code.decoded)]
        rows.append([tap, unit, *named, len(told), *numbers, *effects.tolist()])
    return rows
