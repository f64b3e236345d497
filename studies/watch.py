"""What goes on inside an agent while it plays one level? A film, and a page to go through step by step."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from environments import EnvironmentSettings, State, VectorEnvironment, held_out_levels
from environments.heist import choice_maze, label_states
from environments.procgen import DistributionMode
from interpretability.episode_film import episode_film
from interpretability.episode_page import episode_page
from interpretability.episodes import first_states, play_episodes
from interpretability.film_strip import draw_film_strip
from interpretability.observed_episode import ObservedEpisode, check_shown, observe_episode
from interpretability.replay import ActionLog, Replay, replay
from interpretability.saved_play import play_saved
from interpretability.splice import MEAN_LEVELS
from networks import DEFAULT_PRECISION, Edit, Precision, SAEBase, TappedAgent, load_agent
from studies.arguments import check_at_least_one, check_not_negative
from studies.edit_choice import EditChoice
from studies.report import Cell, Report, Study, Table
from studies.subject import choose_device

ACTION_LETTERS = {"L": 1, "R": 7, "U": 5, "D": 3, ".": 4, "1": 0, "7": 2, "3": 6, "9": 8}
"""Actions by hand: left, right, up, down, stay, and the diagonals as they lie on a keyboard's number block."""


class Watch(Study):
    """Plays one level and shows, step by step, the frame, maps of units, the policy and the value.

    Writes `pages/level_SEED.html`, which needs nothing but a browser, `films/level_SEED.gif` and a strip of frames over
    the courses of the units' activations, `figures/level_SEED.png`. With an autoencoder, an ablation or another edit,
    the edited agent is run on the very same frames and stands beside the untouched one.

    Summary: `watch/steps`, `watch/solved`, and with an edit `watch/kl`, KL(untouched || edited) in nats, and
    `watch/action_agreement`, the fraction of steps with the same most likely of the actions that the page tells apart
    (procgen's idle ones are one), both means over the steps.

    Args:
        agent: path of the agent's weights.
        level: seed of the level; below 100 000 are those that no training has seen.
        actions: taken by hand, as letters: L R U D, a full stop to stay, and 7 9 1 3 for the diagonals up left, up
            right, down left and down right; spaces do not count. Null lets the agent play.
        choose: whether the playing agent samples its actions or takes the likeliest.
        play_edited: the edited agent plays, rather than the untouched one.
        max_steps: the episode is shown up to here.
        fetchable: build a maze in the level's place in which these keys, or keys and the gem, can be fetched at once,
            each in another direction and 2 to 6 moves away, as retargeting plays; heist's, the agent samples.
        show: which units are shown: for a tap's name, or `sae` for an autoencoder's latents, their numbers or how many;
            a number takes those that vary most over the episode. By default 8 of `conv4a`, or of the last map that
            there is.
        sae: path of an autoencoder that replaces its tap.
        ablation: replaces `tap` by zeros, or by its mean over untouched play of 64 validation levels.
        edit: any module, put in at `tap`.
        tap: where `ablation` or `edit` go; an autoencoder knows its own.
        saved_edit: path of an edit that `studies.Retargeting` found, on this agent or another; it knows its own tap.
        game: any procgen game; the shortest solution is shown in heist.
        distribution_mode: its difficulty.
        seed: of the action noise.
        precision: in which the agent runs.
        device: where; `auto` takes a GPU if there is one.
        allow_other_agent: take an autoencoder that was trained on another agent, if its tap fits.

    Raises:
        ValueError: a file that is missing or does not fit, a letter that is no action, a tap that has no map, units
            that it does not have, entities that no maze can have, a negative level or seed, or the edit's arguments do
            not fit together.
    """

    def __init__(
        self,
        agent: str,
        level: int = 0,
        actions: str | None = None,
        choose: Literal["sampled", "greedy"] = "sampled",
        play_edited: bool = False,
        max_steps: int = 100,
        fetchable: list[str] | None = None,
        show: dict[str, list[int] | int] | None = None,
        sae: str | None = None,
        ablation: Literal["mean", "zero"] | None = None,
        edit: nn.Module | None = None,
        tap: str | None = None,
        saved_edit: str | None = None,
        game: str = "heist",
        distribution_mode: DistributionMode = "easy",
        seed: int = 0,
        precision: Precision = DEFAULT_PRECISION,
        device: str = "auto",
        allow_other_agent: bool = False,
    ) -> None:
        self.edit_choice = EditChoice(sae, ablation, edit, tap, allow_other_agent, saved_edit)
        check_at_least_one({"max_steps": max_steps})
        check_not_negative({"level": level, "seed": seed})
        if level >= 2**31 - 1:
            raise ValueError(f"level is {level}: seeds of levels end at {2**31 - 2}")
        if play_edited and not self.edit_choice:
            raise ValueError("play_edited asks for an edit to play with: give sae, ablation, edit or saved_edit")
        if play_edited and actions is not None:
            raise ValueError("actions are taken by hand, so play_edited lets nobody play: give one of them")
        self.actions = None if actions is None else parse_actions(actions)
        self.settings = EnvironmentSettings(game, distribution_mode)
        VectorEnvironment(self.settings, 1).close()  # refuses an unknown game
        self.start = None if fetchable is None else _maze(self.settings, level, fetchable)
        if fetchable is not None and choose == "greedy":
            raise ValueError("fetchable mazes are played by sampling: leave choose at sampled")
        self.fetchable = fetchable
        where = choose_device(device)
        self.name = agent
        self.agent = load_agent(agent).to(where)
        self.edits = self.edit_choice.load(self.agent, where)
        self.sae = next((edit for _, edit in self.edits if sae is not None and isinstance(edit, SAEBase)), None)
        self.show: dict[str, list[int] | int] = _default_show(self.agent) if show is None else show
        check_shown(self.agent, self.sae, self.show)
        self.level, self.choose, self.play_edited = level, choose, play_edited
        self.max_steps, self.seed = max_steps, seed
        self.precision: Precision = precision

    def run(self) -> Report:
        """Play, look inside, draw."""
        validation = held_out_levels("validation", MEAN_LEVELS)
        edits = self.edit_choice.resolve(self.edits, self.agent, validation, self.settings, self.precision, self.seed)
        played = replay(self.level, self._choose_actions(edits), self.settings, self.start)
        episode = observe_episode(
            self.agent,
            played,
            self.show,
            edits=edits,
            sae=self.sae,
            labels=label_states(played.states) if self.settings.game == "heist" else None,
            precision=self.precision,
        )
        title = f"{self.settings.game}, level {self.level}: {_outcome(played)}"
        name = f"level_{self.level}"
        return Report(
            _summary(episode),
            {"steps": _table(episode)},
            figures={name: draw_film_strip(episode, title)},
            films={name: episode_film(episode, title)},
            pages={name: episode_page(episode, title, self._describe())},
        )

    def _choose_actions(self, edits: list[Edit]) -> list[int]:
        if self.actions is not None:
            return self.actions[: self.max_steps]
        if self.start is not None:
            return play_saved(
                self.agent,
                [self.start],
                settings=self.settings,
                edits=edits if self.play_edited else (),
                seed=self.seed,
                max_steps=self.max_steps,
                precision=self.precision,
            ).actions[0]
        log = ActionLog()
        play_episodes(
            self.agent,
            [self.level],
            settings=self.settings,
            edits=edits if self.play_edited else (),
            greedy=self.choose == "greedy",
            seed=self.seed,
            max_steps=self.max_steps,
            precision=self.precision,
            observer=log,
        )
        return log.actions(self.level)

    def _describe(self) -> list[str]:
        choice, settings = self.edit_choice, self.settings
        who = "the edited agent" if self.play_edited else "the untouched agent"
        how = "sampled from its policy" if self.choose == "sampled" else "the likeliest"
        lines = [
            f"Agent {self.name}; game {settings.game}, {settings.distribution_mode}.",
            "Actions given by hand." if self.actions is not None else f"Played by {who}; actions are {how}.",
        ]
        if self.fetchable is not None:
            names = " and ".join(name.replace("_", " ") for name in self.fetchable)
            lines.append(f"A maze built in the place of level {self.level}: {names} can be fetched at once.")
        if self.edit_choice.sae is not None:
            lines.append(f"Edit: the autoencoder {choice.sae} in place of {self.edits[0][0]}.")
        elif choice.saved is not None:
            lines.append(f"Edit: {choice.saved} at {self.edits[0][0]}.")
        elif choice.tap is not None:
            what = f"{choice.ablation} ablation" if choice.ablation else type(choice.edit).__name__
            lines.append(f"Edit: {what} at {choice.tap}.")
        return lines


def _default_show(agent: TappedAgent) -> dict[str, list[int] | int]:
    maps = [tap for tap, shape in agent.taps.items() if len(shape) == 3]
    return {"conv4a" if "conv4a" in maps else maps[-1]: 8}


def parse_actions(letters: str) -> list[int]:
    """Actions from letters, see `ACTION_LETTERS`; small ones count as well, white space does not.

    Raises:
        ValueError: a letter that is no action, or none at all.
    """
    found = [letter.upper() for letter in letters if not letter.isspace()]
    unknown = sorted(set(found) - set(ACTION_LETTERS))
    if unknown or not found:
        raise ValueError(
            f"actions {letters!r}: {' '.join(unknown) or 'nothing'} is no action; "
            "write L R U D, a full stop to stay, 7 9 1 3 for diagonals"
        )
    return [ACTION_LETTERS[letter] for letter in found]


def _maze(settings: EnvironmentSettings, level: int, fetchable: Sequence[str]) -> bytes:
    if settings.game != "heist" or settings.distribution_mode not in ("easy", "hard"):
        raise ValueError(f"fetchable: mazes are built in heist, easy or hard, not in {settings.game}: leave it null")
    state = State.from_bytes(first_states([level], settings)[0])
    return choice_maze(state, np.random.default_rng(level), entities=fetchable, distances=(2, 6)).to_bytes()


def _outcome(played: Replay) -> str:
    steps = f"{len(played.frames)} steps"
    if played.solved:
        return f"solved in {steps}"
    return f"failed after {steps}" if played.ended else f"the first {steps}"


def _summary(episode: ObservedEpisode) -> dict[str, float]:
    played, divergence = episode.replay, episode.divergence()
    summary = {"watch/steps": float(len(played.frames)), "watch/solved": float(played.solved)}
    if divergence is not None:
        clean, edited = (arm.probabilities.argmax(1) for arm in episode.arms)
        summary["watch/kl"] = float(divergence.mean())
        summary["watch/action_agreement"] = float((clean == edited).mean())
    return summary


def _table(episode: ObservedEpisode) -> Table:
    """Action, reward and each arm's value at every step."""
    columns = [episode.replay.actions.tolist(), episode.replay.rewards.tolist()]
    columns += [arm.values.tolist() for arm in episode.arms]
    rows: list[list[Cell]] = [[step, *cells] for step, cells in enumerate(zip(*columns, strict=True), start=1)]
    return Table(["step", "action", "reward", *(f"value {arm.name}" for arm in episode.arms)], rows, printed=False)
