"""Can labels stand in for a tap? Its activation written from what lies where, played in place of the network's own."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from environments import TRAINING_START, EnvironmentSettings, State, held_out_levels
from interpretability.ablations import MeanAblation
from interpretability.episodes import Episodes, Observer, play_episodes
from interpretability.films import Film, film_of_replays
from interpretability.frame_outputs import sees_frames
from interpretability.label_code import PLAN, SCENE, LabelCode, Written, fit_code, label_maps
from interpretability.replay import ActionLog, replay
from interpretability.statistics import Interval, bracketed, fraction_recovered, join_metrics, paired_bootstrap
from networks import DEFAULT_PRECISION, Edit, Precision, TappedAgent, load_agent
from studies.arguments import check_at_least_one, check_not_empty, check_not_negative
from studies.replacement_frames import (
    Recorded,
    Recorder,
    acts_of,
    compare_policies,
    explained_variance,
    write_all,
)
from studies.replacement_page import ARMS, draw_arms, draw_maps, replacement_page
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

_FILMED: Final = 2
_FILMED_STEPS: Final = 100


class Replacement(Study):
    """Writes a tap's activation from labels alone, and plays with it in place of the network's own.

    The labels are maps of walls, keys, locks, gem, player and held keys (`scene`); `target` adds where the shortest
    solution's next pickup lies, and `plan` also the cells on the way to it and the first move. The function from them
    to the activation is the mean at each position plus one k x k convolution (of a flat tap a linear map of all cells),
    fitted by least squares on untouched play of training levels. The network before the tap is then idle: what is left
    of its play is what the labels and one linear map say. Where `plan` keeps what `scene` loses, what follows the tap
    reads the solution there, and walls and entities seen through one window do not give it; how the network finds it
    is not said.

    Controls: `mean`, the mean at each position alone (mean ablation); `shuffled`, a function fitted with the labels of
    other frames; and how well an agent with random weights can be written, for any network's activation is partly a
    blurred picture of the scene.

    Writes the page `pages/replacement.html`, the table `arms`, figures, and a film of the first test levels for each
    tap. Summary, with 95 % bounds over test levels: `replacement/levels` and `fit_frames`; `replacement/clean/return`
    and `solved`; `replacement/TAP/ARM/...` for the arms above: `explained_variance` of the activation about each
    position's mean, `kl` and `action_agreement` with the untouched agent on its own play, and, of all but `shuffled`,
    `return`, `solved` and (not of `mean`) `recovered` = (return - mean's) / (clean - mean's);
    `replacement/TAP/random_agent/explained_variance`, of `plan`.

    Args:
        agent: path of the agent's weights.
        taps: that are written, one at a time.
        kernel: side of the convolution, odd.
        fit_levels: training levels whose play is fitted.
        num_levels: test levels that are played.
        every: steps from one recorded frame of a level to the next.
        max_steps: an episode is cut here, and counts as unsolved.
        distribution_mode: of heist; its frame has to show the whole world.
        seed: of the action noise, the shuffle and the random weights.
        num_environments: levels played at a time.
        precision: in which the agent plays.
        device: where; `auto` takes a GPU if there is one.

    Raises:
        ValueError: a file that is missing or does not fit, a tap that cannot be written or that the frame gets past,
            an even kernel, numbers below 1, or a negative seed.
    """

    def __init__(
        self,
        agent: str,
        taps: tuple[str, ...] = ("pool1", "conv4a"),
        kernel: int = 5,
        fit_levels: int = 256,
        num_levels: int = 100,
        every: int = 8,
        max_steps: int = 300,
        distribution_mode: Literal["easy", "hard"] = "easy",
        seed: int = 0,
        num_environments: int = 64,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
    ) -> None:
        numbers = {"fit_levels": fit_levels, "every": every, "max_steps": max_steps, "kernel": kernel}
        check_at_least_one(numbers | {"num_environments": num_environments})
        check_not_negative({"seed": seed})
        check_not_empty({"taps": taps})
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} has no middle: take an odd side")
        self.agent = load_agent(agent).to(choose_device(device))
        self.agent.check_taps(list(taps), inner=True)
        for tap in taps:
            _check_alone(self.agent, tap)
        self.fitted = range(TRAINING_START, TRAINING_START + fit_levels)
        self.tested = held_out_levels("test", num_levels)
        self.settings = EnvironmentSettings("heist", distribution_mode)
        self.name, self.taps, self.kernel, self.every = agent, tuple(taps), kernel, every
        self.max_steps, self.seed, self.num_environments = max_steps, seed, num_environments
        self.precision: Precision = precision

    def run(self) -> Report:
        """Record, fit, play, compare."""
        fitted, _ = self._record(self.fitted, "play to fit")
        tested, clean = self._record(self.tested, "clean")
        drawn = self.agent.untrained(self.seed).to(next(self.agent.parameters()).device)
        intervals: dict[str, Interval] = {
            f"replacement/clean/{name}": clean.intervals()[name] for name in ("return", "solved")
        }
        shown: dict[str, dict[str, Tensor]] = {}
        films: dict[str, Film] = {}
        for tap in self.taps:
            codes = self._codes(tap, fitted.states, fitted.acts[tap])
            played: dict[str, Episodes] = {}
            shown[tap] = {"real": tested.acts[tap]}
            for arm, code in codes.items():
                key = f"replacement/{tap}/{arm}"
                edit: nn.Module = MeanAblation(code.mean) if arm == "mean" else Written(code)
                written = shown[tap][arm] = write_all(code, tested.states)
                intervals[f"{key}/explained_variance"] = explained_variance(written, tested.acts[tap], tested.rows)
                compared = compare_policies(self.agent, (tap, edit), tested, self.precision)
                intervals |= {f"{key}/{name}": found for name, found in compared.items()}
                if arm != "shuffled":
                    played[arm] = self._play(self.tested, [(tap, edit)], f"{tap}, {arm}")
            films[tap] = self._film(tap, {arm: codes[arm] for arm in ("plan", "scene")})
            for arm, episodes in played.items():
                key, found = f"replacement/{tap}/{arm}", episodes.intervals()
                intervals |= {f"{key}/{name}": found[name] for name in ("return", "solved")}
                if arm != "mean":
                    returns = [clean.returns, episodes.returns, played["mean"].returns]
                    intervals[f"{key}/recovered"] = paired_bootstrap(fraction_recovered, returns)
            chance, chance_tested = (acts_of(drawn, tap, one.frames, self.precision) for one in (fitted, tested))
            written = write_all(self._codes(tap, fitted.states, chance)["plan"], tested.states)
            explained = explained_variance(written, chance_tested, tested.rows)
            intervals[f"replacement/{tap}/random_agent/explained_variance"] = explained
        summary = {"replacement/levels": float(len(self.tested)), "replacement/fit_frames": float(len(fitted.states))}
        summary |= join_metrics(intervals)
        tables = {"arms": _table(self.taps, summary)}
        figures = {"arms": draw_arms(self.taps, summary)}
        if maps := {tap: arms for tap, arms in shown.items() if arms["real"].ndim == 4}:
            figures["maps"] = draw_maps(tested.frames, maps)
        page = replacement_page(self.name, self.kernel, summary, tables, figures, list(films))
        return Report(summary, tables, figures, films, {"replacement": page})

    def _film(self, tap: str, codes: Mapping[str, LabelCode]) -> Film:
        """The first test levels as they are played untouched, and with the tap written by some codes."""
        levels = self.tested[:_FILMED]
        edits: dict[str, list[Edit]] = {"untouched": [], **{arm: [(tap, Written(code))] for arm, code in codes.items()}}
        logs = {arm: ActionLog() for arm in edits}
        for arm, edit in edits.items():
            self._play(levels, edit, f"film of {tap}, {arm}", logs[arm])
        tiles = [(level, arm) for level in levels for arm in edits]
        replays = [replay(level, logs[arm].actions(level), self.settings) for level, arm in tiles]
        words = [
            f"{arm}: {'solved' if one.solved else 'unsolved'}" for (_, arm), one in zip(tiles, replays, strict=True)
        ]
        return film_of_replays(replays, words, max_steps=_FILMED_STEPS)

    def _play(self, levels: range, edits: Sequence[Edit], title: str, observer: Observer | None = None) -> Episodes:
        return play_episodes(
            self.agent, levels, settings=self.settings, edits=edits, seed=self.seed, max_steps=self.max_steps,
            num_environments=self.num_environments, precision=self.precision, observer=observer, progress=title,
        )  # fmt: skip

    def _record(self, levels: range, title: str) -> tuple[Recorded, Episodes]:
        recorder = Recorder(self.taps, levels, self.every)
        episodes = self._play(levels, list(recorder.seen.items()), title, recorder)
        return recorder.recorded(), episodes

    def _codes(self, tap: str, states: Sequence[bytes], acts: Float[Tensor, "N C *HW"]) -> dict[str, LabelCode]:
        """A code for each arm; the mean's has no weights."""
        shape = self.agent.taps[tap]
        side = State.from_bytes(states[0]).grid.shape[0]  # of a flat tap: a position a cell
        height, width = shape[1:] if len(shape) == 3 else (side, side)
        maps = label_maps(states, height, width, len(SCENE) + len(PLAN))
        order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(self.seed))
        given = {"plan": maps, "target": maps[:, : len(SCENE) + 1], "scene": maps[:, : len(SCENE)]}
        codes = {arm: fit_code(some, acts, kernel=self.kernel) for arm, some in given.items()}
        codes["shuffled"] = fit_code(maps[order], acts, kernel=self.kernel)
        plain = codes["scene"]
        codes["mean"] = LabelCode(torch.zeros_like(plain.weight), plain.maps_mean, plain.mean, plain.floor)
        device = next(self.agent.parameters()).device
        return {arm: code.to(device) for arm, code in codes.items()}


def _table(taps: Sequence[str], summary: Mapping[str, float]) -> Table:
    """A row for each tap and arm."""
    names = ("explained_variance", "kl", "action_agreement", "return", "solved", "recovered")
    rows: list[list[Cell]] = [
        ["", "untouched", "", "", "", *_cells("replacement/clean", ("return", "solved"), summary), ""]
    ]
    rows += [[tap, ARMS[arm], *_cells(f"replacement/{tap}/{arm}", names, summary)] for tap in taps for arm in ARMS]
    return Table(["tap", "written from", *(name.replace("_", " ") for name in names)], rows)


def _cells(prefix: str, names: Sequence[str], summary: Mapping[str, float]) -> list[Cell]:
    """Each with its interval in words; empty where it was not measured."""
    return [
        bracketed(summary[key], summary[f"{key}_low"], summary[f"{key}_high"]) if key in summary else ""
        for key in (f"{prefix}/{name}" for name in names)
    ]


def _check_alone(agent: TappedAgent, tap: str) -> None:
    """Refuse a tap, as inside a residual block, past which the frame still gets to the outputs."""
    held = MeanAblation(torch.zeros(agent.taps[tap])).to(next(agent.parameters()).device)
    if sees_frames(agent, np.zeros((1, 64, 64, 3), dtype=np.uint8), [(tap, held)]):
        raise ValueError(
            f"{tap}: the frame gets past this tap, so that nothing written there plays alone: choose one that all goes "
            "through, in a residual network its stream (seqS.pool, seqS.blockB)"
        )
