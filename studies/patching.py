"""Where does the agent keep where to go? A part of one frame's activation is put into another frame's pass."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from environments import EnvironmentSettings, held_out_levels
from interpretability.patching import action_difference, record_taps
from interpretability.statistics import Interval, bootstrap_interval, join_metrics, wilson_interval
from networks import DEFAULT_PRECISION, Precision, load_agent
from studies.arguments import check_distances, check_not_negative
from studies.patching_mazes import SETS, Pair, make_pairs
from studies.patching_moves import ESTIMATES, PAIRS, REFERENCES, Moved, agreement, measure
from studies.patching_page import draw_estimates, draw_examples, draw_maps, draw_sets, draw_units, patching_page
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

_SOURCES = {
    "": "exchanged, both ways",
    "_forth": "exchanged",
    "_back": "the maze into the exchanged one",
    "_irrelevant": "a lock moved aside",
    "_unrelated": "another maze",
    "_random_agent": "exchanged, random weights",
}


class Patching(Study):
    """Runs the agent on a maze with a part of its activation taken from the same maze in which two entities, that can
    both be fetched at once, lie in each other's places: which part carries the agent over to the other choice?

    The choice is the log-probability of the actions towards where the one lies less that of the actions towards where
    the other lies. Recovered is what the patch moves of the difference between the two frames, towards the frame that
    the patch comes from: 1 as if that were the whole frame, 0 as if nothing had been done. It is the mean over test
    levels weighted by the size of that difference, with 95 % bounds over levels, over both directions (patching from
    either frame into the other) together.

    Maps are patched whole, at sets of positions (the cells of the two entities, the surroundings of the player, all
    but these, and as many positions elsewhere, about half a map away), and in blocks of positions one by one, shown as
    they lie in the frame and as they lie from the entities and the player. In a network whose layers read nothing but
    the layer before, the whole tap recovers 1 by construction. Other sources are controls: `unrelated`, another maze of
    the same two entities (what any disturbance does; half of the difference is gone when the agent no longer prefers
    anything), and `irrelevant`, the same maze with one lock moved aside. An agent with random weights stands beside all
    (its difference is tiny: what recovers much of it says where a network of this shape can hold it, not that it does).

    What single blocks and channels move is also estimated by gradients (`interpretability.attribution`), for all in one
    backward pass where measuring takes a pass each: at the frame that is run, and as the mean along the way to the
    other. How well estimates agree with what was measured says how far they can be trusted on this agent.

    Writes the page `pages/patching.html`, the tables `sets`, `best`, `positions`, `estimates` and (asked for) `units`,
    figures.
    Summary: `patching/levels`; `patching/difference` in nats (`random_agent_difference`, of random weights),
    `patching/follows` (share of mazes in which the agent's choice follows the exchange), `patching/TAP/recovered` of
    the whole tap, `patching/TAP/SET`, each also `..._forth` and `..._back` by direction, `..._unrelated`,
    `..._irrelevant` and `..._random_agent`; `patching/TAP/best_share`, `best_recovered`: the share of positions in the
    smallest set that recovers `keep` on validation levels, and what it recovers on test levels;
    `patching/TAP/peak_REFERENCE`: the single block that recovers most on validation levels, likewise;
    `patching/TAP/unit`, the channel that does, with `unit_recovered` and `unit_random_agent` (the best of an agent with
    random weights); `patching/TAP/blocks_gradient`, `blocks_path`, `units_gradient`, `units_path`: how estimates at one
    frame and along the way correlate with what was measured.

    Args:
        agent: path of the agent's weights.
        taps: what is patched; a flat one only as a whole, and by units.
        num_levels: test levels; a multiple of 6, from 12 on, for each two of blue, green and red key and gem.
        validation_levels: on which sets and blocks are chosen; likewise.
        distances: moves to the entities, least and greatest.
        units: patch single channels, at all positions, as well.
        keep: see above.
        distribution_mode: of heist.
        seed: of mazes and the random weights.
        precision: of the passes.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that is unknown or has no units, numbers of levels of
            another kind, distances that do not rise, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("conv1a", "conv2b", "conv3a", "conv4a", "pool4", "fc1"),
        num_levels: int = 120,
        validation_levels: int = 60,
        distances: tuple[int, int] = (2, 6),
        units: bool = True,
        keep: float = 0.9,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        for name, number in {"num_levels": num_levels, "validation_levels": validation_levels}.items():
            if number < 2 * PAIRS or number % PAIRS:
                raise ValueError(f"{name} {number} must be a multiple of 6, from 12 on: the same for each two entities")
        if not taps or not 0 < keep <= 1:
            raise ValueError(f"taps {list(taps)} must name at least one, and keep {keep} lie above 0 and up to 1")
        check_not_negative({"seed": seed})
        check_distances(distances)
        self.levels = {
            "validation": held_out_levels("validation", validation_levels),
            "test": held_out_levels("test", num_levels),
        }
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.agent = load_agent(agent).to(choose_device(device))
        self.agent.check_taps(list(taps))
        if scalar := [tap for tap in taps if not self.agent.taps[tap]]:
            raise ValueError(f"{scalar[0]} has no units: choose another tap")
        self.name, self.taps, self.distances = agent, tuple(taps), distances
        self.units, self.keep, self.seed = units, keep, seed
        self.precision: Precision = precision

    def run(self) -> Report:
        """Patch on validation and test levels, choose, count."""
        drawn = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        actions = self.agent.taps["logits"][0]
        pairs = {
            split: make_pairs(
                levels, self.settings, distances=self.distances, seed=self.seed, num_actions=actions
            )
            for split, levels in self.levels.items()
        }  # fmt: skip
        tuned, found, random = (
            measure(
                agent, pairs[split], self.taps, units=self.units, controls=title == "test levels",
                precision=self.precision, progress=title,
            )
            for agent, split, title in (
                (self.agent, "validation", "validation levels"),
                (self.agent, "test", "test levels"),
                (drawn, "test", "random weights"),
            )
        )  # fmt: skip
        intervals = {
            "patching/difference": bootstrap_interval(found[self.taps[0]].whole.mean(1)),
            "patching/random_agent_difference": bootstrap_interval(random[self.taps[0]].whole.mean(1)),
            "patching/follows": self._follows(pairs["test"]),
        }
        summary: dict[str, float] = {"patching/levels": float(len(pairs["test"]))}
        rows: list[list[Cell]] = []
        for tap, moved in found.items():
            for name in moved.sets:
                arms = moved.arms(name) | {"_random_agent": random[tap].arms(name)[""]}
                key = "recovered" if name == "all" else name
                intervals |= {f"patching/{tap}/{key}{ending}": interval for ending, interval in arms.items()}
                rows += [
                    [tap, SETS[name], _SOURCES[ending], moved.share[name], *interval]
                    for ending, interval in arms.items()
                ]
        columns = ["tap", "patched", "source", "share of positions", "recovered", "low", "high"]
        tables = {"sets": Table(columns, rows, printed=False)}
        tables["best"], best = self._best(tuned, found)
        tables["positions"], peaks = self._peaks(pairs, tuned, {"": found, "_random_agent": random})
        tables["estimates"], agreeing = _estimates(found)
        intervals |= agreeing
        if self.units:
            tables["units"] = _unit_table(tuned, found, random)
            for tap in self.taps:
                rows_of_tap = [row for row in tables["units"].rows if row[0] == tap]
                summary[f"patching/{tap}/unit"] = float(rows_of_tap[0][1])
                summary[f"patching/{tap}/unit_random_agent"] = max(float(row[6]) for row in rows_of_tap)
                peaks[f"patching/{tap}/unit_recovered"] = Interval(*(float(bound) for bound in rows_of_tap[0][3:6]))
        summary |= {f"patching/{tap}/best_share": float(row[2]) for tap, row in best.items()}
        intervals |= {f"patching/{tap}/best_recovered": Interval(*row[3:]) for tap, row in best.items()} | peaks
        summary |= join_metrics(intervals)
        maps = {
            tap: {reference: moved.map(pairs["test"], reference) for reference in REFERENCES}
            for tap, moved in found.items()
            if moved.blocks.size
        }
        figures = {"sets": draw_sets(self.taps, summary)}
        if self.units:
            figures["units"] = draw_units(self.taps, tables["units"])
            figures["estimates"] = draw_estimates(self.taps, tables["units"])
        if maps:
            figures["positions"] = draw_maps(maps)
            figures["examples"] = draw_examples(pairs["test"], {tap: found[tap] for tap in maps})
        page = patching_page(self.name, summary, tables, figures)
        return Report(summary, tables, figures, pages={"patching": page})

    def _follows(self, pairs: Sequence[Pair]) -> Interval:
        """In how many mazes the exchange turns the agent's choice with the preferred entity."""
        turned = 0
        for pair in pairs:
            logits = record_taps(self.agent, pair.frames[:2], ["logits"], self.precision)["logits"].float().cpu()
            first, second = action_difference(logits, *pair.towards).tolist()
            turned += first > 0 > second
        return wilson_interval(turned, len(pairs))

    def _best(
        self, tuned: Mapping[str, Moved], found: Mapping[str, Moved]
    ) -> tuple[Table, dict[str, tuple[str, str, float, float, float, float]]]:
        """For each tap the smallest set that recovers enough on validation levels; the whole tap if none does."""
        rows = {}
        for tap, moved in found.items():
            order = sorted(moved.sets, key=lambda name: tuned[tap].share[name])
            enough = [name for name in order if tuned[tap].arms(name)[""].value >= self.keep]
            name = enough[0] if enough else "all"
            rows[tap] = (tap, SETS[name], moved.share[name], *moved.arms(name)[""])
        columns = ["tap", f"smallest set for {self.keep:g}", "share of positions", "recovered", "low", "high"]
        return Table(columns, [list(row) for row in rows.values()]), rows

    def _peaks(
        self, pairs: Mapping[str, Sequence[Pair]], tuned: Mapping[str, Moved], arms: Mapping[str, Mapping[str, Moved]]
    ) -> tuple[Table, dict[str, Interval]]:
        """The block of each tap that recovers most on validation levels, and what it recovers on test levels."""
        rows: list[list[Cell]] = []
        peaks: dict[str, Interval] = {}
        for tap, moved in tuned.items():
            for reference in REFERENCES if moved.blocks.size else ():
                seen = moved.map(pairs["validation"], reference)
                row, column = divmod(int(np.nanargmax(seen)), seen.shape[1])
                middle = (0, 0) if reference == "frame" else (seen.shape[0] // 2, seen.shape[1] // 2)
                for arm, measured in arms.items():
                    there = measured[tap].around(pairs["test"], reference)[0][:, :, row, column]
                    peak = peaks[f"patching/{tap}/peak_{reference}{arm}"] = measured[tap].recovered(there)
                    rows.append([tap, "random weights" if arm else "agent", reference,
                                 column - middle[1], row - middle[0], *peak])  # fmt: skip
        columns = ["tap", "agent", "counted from", "blocks right", "blocks down", "recovered", "low", "high"]
        return Table(columns, rows, printed=False), peaks


def _estimates(found: Mapping[str, Moved]) -> tuple[Table, dict[str, Interval]]:
    """How far estimates by gradients agree with what single patches moved, on test levels."""
    rows: list[list[Cell]] = []
    intervals: dict[str, Interval] = {}
    for tap, moved in found.items():
        for how in moved.estimates:
            measured = moved.blocks.reshape(*moved.whole.shape, -1), moved.units
            for kind, one, other in zip(("blocks", "units"), measured, moved.estimated(how), strict=True):
                if one.size:
                    intervals[f"patching/{tap}/{kind}_{how}"] = interval = agreement(one, other)
                    rows.append([tap, kind, how, *interval])
    return Table(["tap", "patched", "estimate", "correlation", "low", "high"], rows, printed=False), intervals


def _unit_table(tuned: Mapping[str, Moved], found: Mapping[str, Moved], random: Mapping[str, Moved]) -> Table:
    """Channels in the order of what they recover on validation levels."""
    rows: list[list[Cell]] = []
    for tap, moved in found.items():
        for unit in range(moved.units.shape[2]):
            first, own, chance = (
                each.recovered(each.units[:, :, unit]) for each in (tuned[tap], moved, random[tap])
            )  # fmt: skip
            guessed = [moved.recovered(moved.estimated(how)[1][:, :, unit]).value for how in ESTIMATES]
            rows.append([tap, unit, first.value, *own, chance.value, *guessed])
    columns = ["tap", "unit", "on validation levels", "recovered", "low", "high", "random weights", *ESTIMATES]
    return Table(columns, sorted(rows, key=lambda row: -float(row[2])), printed=False)
