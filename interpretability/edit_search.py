"""Searching the smallest edit of channels that sends an agent after an entity, by gradient on tuning mazes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from tqdm import tqdm

from environments import EnvironmentSettings, State, VectorEnvironment
from environments.heist import DIRECTION_STEPS, copy_state, find_entity
from environments.heist.random_mazes import free_cells, walks_from
from environments.heist.scenarios import put_at
from environments.state import WALL
from networks.channel_edit import ChannelEdit, MixingEdit, TapEdit
from networks.taps import TappedAgent


@dataclass(frozen=True)
class AskedMoves:
    """Frames on the way to an entity, and the actions that go there.

    Attributes:
        frames: uint8 [N 64 64 3].
        wanted: the actions with the right direction in them, diagonals included, [N A].
    """

    frames: UInt8[Tensor, "N 64 64 3"]
    wanted: Bool[Tensor, "N A"]


@dataclass(frozen=True)
class FoundEdit:
    """An edit of the frontier.

    Attributes:
        edit: what was found.
        size: how many units it changes; of a mixing edit, how many directions it reads and writes.
        norm: root mean square over tuning frames and positions of the change's norm across units.
        probability: mean probability of a wanted action on validation frames.
    """

    edit: TapEdit
    size: int
    norm: float
    probability: float


def asked_moves(
    mazes: Sequence[State], entity: str, rng: np.random.Generator, settings: EnvironmentSettings, num_actions: int
) -> AskedMoves:
    """The player on every cell of the way to an entity, up to half a move towards the next one.

    Args:
        mazes: without loops, in each of which the entity can be walked to.
        entity: a key or the gem.
        rng: draws how far the player has come.
        settings: heist's.
        num_actions: A.

    Raises:
        ValueError: a maze without the entity.
    """
    states: list[State] = []
    wanted: list[np.ndarray] = []
    deltas = np.array([(action // 3 - 1, action % 3 - 1) if action < 9 else (0, 0) for action in range(num_actions)])
    for maze in mazes:
        row = find_entity(maze, entity)
        place = (int(maze.entities["x"][row]), int(maze.entities["y"][row]))
        start = (int(maze.entities["x"][0]), int(maze.entities["y"][0]))
        way = [start, *walks_from(set(free_cells(maze.grid != WALL)), start).path(place)]
        for (x, y), (next_x, next_y) in itertools.pairwise(way):
            dx, dy = next_x - x, next_y - y
            assert (dx, dy) in DIRECTION_STEPS
            state, come = copy_state(maze), rng.uniform(0, 0.5)
            put_at(state, 0, x + 0.5 + dx * come, y + 0.5 + dy * come)
            states.append(state)
            wanted.append(deltas @ (dx, dy) > 0)
    environment = VectorEnvironment(settings, len(states))
    try:
        environment.set_states([state.to_bytes() for state in states])
        frames = torch.from_numpy(environment.observe()[1].copy())
    finally:
        environment.close()
    return AskedMoves(frames, torch.from_numpy(np.stack(wanted)))


def search_edit(
    agent: TappedAgent,
    tap: str,
    tuning: AskedMoves,
    validation: AskedMoves,
    *,
    unit_counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    steps: int = 100,
    batch_size: int = 128,
    learning_rate: float = 0.05,
    sparsity: float = 0.02,
    seed: int = 0,
) -> list[FoundEdit]:
    """The frontier of edits: the best found with each number of units, and the probability of the asked moves.

    All units are fitted first, with a penalty on the sum of their sizes; for each count the largest so many are then
    fitted on from there, without it. The agent is not changed.

    Args:
        agent: in evaluation mode.
        tap: `logits` and `value` are refused: an edit there would not have to find anything out.
        tuning: frames to fit on.
        validation: frames of other mazes to measure on.
        unit_counts: sizes of edits; those beyond the tap's are left out.
        steps: gradient steps of each fit (Adam).
        batch_size, learning_rate, seed: of the fits.
        sparsity: weight of the penalty against the negative log-probability.

    Raises:
        ValueError: the tap cannot be edited, or no count fits it.
    """
    counts = _counts(agent, tap, unit_counts)
    squares = _mean_squares(agent, tap, tuning.frames)

    def fit(edit: ChannelEdit, kept: Tensor, penalty: float) -> ChannelEdit:
        optimiser = torch.optim.Adam(edit.parameters(), learning_rate)
        generator = torch.Generator().manual_seed(seed)
        for step in range(steps):
            rows = torch.randint(len(tuning.frames), (batch_size,), generator=generator)
            loss = -_log_probability(agent, tap, edit, tuning, rows).mean()
            if penalty:
                loss = loss + penalty * edit.size(squares).sum()
            edit.scale.grad, edit.shift.grad = torch.autograd.grad(loss, [edit.scale, edit.shift])
            edit.scale.grad *= kept
            edit.shift.grad *= kept
            optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimiser.step()
        return edit.requires_grad_(False)

    everything = fit(ChannelEdit(agent.taps[tap][0]).to(squares.device), torch.ones_like(squares), sparsity)
    order = everything.size(squares).argsort(descending=True)
    found: list[FoundEdit] = []
    for count in counts:
        kept = torch.zeros_like(squares)
        kept[order[:count]] = 1
        edit = ChannelEdit(len(kept)).to(squares.device)
        with torch.no_grad():
            edit.scale.copy_(everything.scale * kept)
            edit.shift.copy_(everything.shift * kept)
        edit = fit(edit, kept, 0.0)
        found.append(
            FoundEdit(edit, len(edit.units), _norm(agent, tap, edit, tuning), probability(agent, tap, edit, validation))
        )
    return found


def search_mixing(
    agent: TappedAgent,
    tap: str,
    tuning: AskedMoves,
    validation: AskedMoves,
    *,
    ranks: Sequence[int] = (1, 2, 4, 8, 16),
    steps: int = 200,
    batch_size: int = 128,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> list[FoundEdit]:
    """The frontier of mixing edits: one fitted afresh for each rank.

    Args:
        agent, tap, tuning, validation, steps, batch_size, learning_rate, seed: as for `search_edit`.
        ranks: sizes of edits; those beyond the tap's units are left out.

    Raises:
        ValueError: as for `search_edit`.
    """
    found: list[FoundEdit] = []
    for rank in _counts(agent, tap, ranks):
        edit = MixingEdit(agent.taps[tap][0], rank, seed).to(next(agent.parameters()).device)
        parameters = list(edit.parameters())
        optimiser = torch.optim.Adam(parameters, learning_rate)
        generator = torch.Generator().manual_seed(seed)
        for step in tqdm(range(steps), desc=f"mixing edit of rank {rank}", unit="step", leave=False):
            rows = torch.randint(len(tuning.frames), (batch_size,), generator=generator)
            loss = -_log_probability(agent, tap, edit, tuning, rows).mean()
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            optimiser.step()
        edit.requires_grad_(False)
        found.append(FoundEdit(edit, rank, _norm(agent, tap, edit, tuning), probability(agent, tap, edit, validation)))
    return found


def _counts(agent: TappedAgent, tap: str, asked: Sequence[int]) -> list[int]:
    """Sizes of edits that the tap can have."""
    agent.check_taps([tap])
    if tap.split(".")[0] in ("logits", "value"):
        raise ValueError(f"{tap} is no tap to retarget at: choose one inside the network")
    counts = sorted({count for count in asked if 1 <= count <= agent.taps[tap][0]})
    if not counts:
        raise ValueError(f"unit_counts {list(asked)} hold none from 1 to {agent.taps[tap][0]}, the units of {tap}")
    return counts


def smallest(found: Sequence[FoundEdit], keep: float = 0.95) -> FoundEdit:
    """The smallest edit that has at least `keep` of the frontier's best probability."""
    best = max(one.probability for one in found)
    return min((one for one in found if one.probability >= keep * best), key=lambda one: one.size)


@torch.inference_mode()
def probability(agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves) -> float:
    """Mean probability that the edited agent takes a wanted action."""
    rows = torch.arange(len(moves.frames)).split(256)
    return float(torch.cat([_log_probability(agent, tap, edit, moves, part).exp() for part in rows]).mean())


def _log_probability(
    agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves, rows: Tensor
) -> Float[Tensor, " B"]:
    device = next(agent.parameters()).device
    logits = agent.forward(moves.frames[rows].to(device), edits=[(tap, edit)]).logits  # not __call__: never compiled
    assert logits is not None
    return logits.log_softmax(-1).masked_fill(~moves.wanted[rows].to(device), -torch.inf).logsumexp(-1)


@torch.inference_mode()
def _acts(agent: TappedAgent, tap: str, frames: Tensor) -> Tensor:
    device = next(agent.parameters()).device
    acts = agent.forward(frames[:256].to(device), record=(tap,), outputs=False).activations[tap]
    return acts.movedim(1, -1).flatten(0, -2)


def _mean_squares(agent: TappedAgent, tap: str, frames: Tensor) -> Float[Tensor, " C"]:
    return _acts(agent, tap, frames).square().mean(0).clone()


@torch.inference_mode()
def _norm(agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves) -> float:
    return float(edit.change(_acts(agent, tap, moves.frames)).square().sum(1).mean().sqrt())
