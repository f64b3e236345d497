"""Searching the smallest edit of channels that sends an agent after an entity, by gradient on tuning mazes."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from interpretability.asked_moves import AskedMoves
from interpretability.perception import CellReader
from networks.channel_edit import ChannelEdit, MixingEdit, TapEdit
from networks.precision import DEFAULT_PRECISION, Precision, autocast
from networks.taps import AgentOutput, TappedAgent

_CLIP = 1.0  # length of a gradient; a few frames on which the agent is sure of the wrong move would undo a fit
NORM_FRAMES = 256
"""On so many frames the norm of an edit's change is measured."""
_TINY = 1e-8  # a square root has no slope at 0
_WARM_UP = 50  # steps until the learning rate is whole


@dataclass(frozen=True)
class FoundEdit:
    """An edit of the frontier.

    Attributes:
        edit: what was found.
        size: how many units it changes; of a mixing edit, how many directions it reads and writes; of one that
            repaints, how many detectors it has.
        norm: root mean square over tuning frames and positions of the change's norm across units.
        probability: mean probability of a wanted action on validation frames.
        reached: share of validation mazes in which the asked entity is touched first; NaN where nobody played.
    """

    edit: TapEdit
    size: int
    norm: float
    probability: float
    reached: float = math.nan


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
            FoundEdit(
                edit, edit_size(edit), change_norm(agent, tap, edit, tuning), probability(agent, tap, edit, validation)
            )
        )
    return found


def search_learned(
    agent: TappedAgent,
    tap: str,
    edits: Mapping[int, TapEdit],
    tuning: AskedMoves,
    validation: AskedMoves,
    *,
    steps: int = 400,
    batch_size: int = 64,
    learning_rate: float = 0.01,
    seed: int = 0,
    play: Callable[[TapEdit], AskedMoves] | None = None,
    rounds: int = 3,
    readers: Mapping[str, CellReader] | None = None,
    keep_seen: float = 1.0,
    keep_outside: float = 0.0,
    precision: Precision = DEFAULT_PRECISION,
    progress: str | None = None,
) -> Iterator[FoundEdit]:
    """Edits of several sizes, each fitted as it is; yielded one by one, since each takes a while.

    The steps are divided among `rounds` parts and one more. After each but the last the edited agent plays, and the
    frames that it came to are added (dataset aggregation: Ross et al. 2011, arXiv 1011.0686): it learns to come away
    from where its own mistakes lead. The agent is not changed.

    Args:
        agent, tap, tuning, validation: as for `search_edit`.
        edits: fresh edits by their size; fitted in place.
        steps: gradient steps of each fit (Adam).
        batch_size, learning_rate, seed: of the fits; the learning rate rises for some steps, then falls to 0.
        play: what the agent comes to with an edit; without it all steps are taken on `tuning`.
        rounds: how often it plays.
        readers: of maps in which what is read is to stay what it is without the edit.
        keep_seen: weight of how far it does not (see `seen_change`), against the negative log-probability.
        keep_outside: weight of what is changed outside the asked entity's cell and half a cell around it, likewise: the
            mean over positions there of the change's norm across channels. Only of maps.
        precision: of the passes.
        progress: title of the progress bars; None shows none.

    Raises:
        ValueError: the tap cannot be edited.
    """
    _counts(agent, tap, [1])
    plays = [] if play is None else [steps * part // (rounds + 1) for part in range(1, rounds + 1)]
    for reader in (readers or {}).values():
        reader.to(next(agent.parameters()).device)
    for size, edit in edits.items():
        edit.to(next(agent.parameters()).device)
        parameters = list(edit.parameters())
        optimiser = torch.optim.Adam(parameters, learning_rate)
        generator = torch.Generator().manual_seed(seed)
        moves, changes, title = tuning, _Changes(edit), f"{progress}, size {size}"
        for step in tqdm(range(steps), desc=title, unit="step", disable=progress is None, leave=False):
            if play is not None and step in plays:
                moves = moves + play(edit)
            rows = torch.randint(len(moves.frames), (batch_size,), generator=generator)
            output = _edited(agent, tap, changes, moves.frames[rows], precision, tuple(readers or ()))
            loss = -_wanted(output, moves, rows).mean()
            if keep_outside:
                loss = loss + keep_outside * changes.outside(moves, rows)
            if readers:
                change = _reading_change(agent, moves.frames[rows], output.activations, readers, precision)
                loss = loss + keep_seen * change
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(parameters, _CLIP)
            optimiser.param_groups[0]["lr"] = learning_rate * min((step + 1) / _WARM_UP, 1 - step / steps)
            optimiser.step()
        edit.requires_grad_(False)
        yield FoundEdit(
            edit, size, change_norm(agent, tap, edit, tuning), probability(agent, tap, edit, validation, precision)
        )


class _Changes(nn.Module):
    """An edit that remembers what it last added."""

    def __init__(self, edit: TapEdit) -> None:
        super().__init__()
        self._edit = edit
        self._change = torch.empty(0)

    def forward(self, acts: Tensor) -> Tensor:
        self._change = self._edit.change(acts)
        return acts + self._change

    def outside(self, moves: AskedMoves, rows: Tensor) -> Float[Tensor, ""]:
        """Mean of its norm across channels, over positions outside the asked entity's cell."""
        outside = moves.outside(rows, *self._change.shape[2:]).to(self._change.device)
        return (self._change.float().square().sum(1) + _TINY).sqrt()[outside].mean()


def _counts(agent: TappedAgent, tap: str, asked: Sequence[int]) -> list[int]:
    """Sizes of edits that the tap can have."""
    agent.check_taps([tap], inner=True)
    counts = sorted({count for count in asked if 1 <= count <= agent.taps[tap][0]})
    if not counts:
        raise ValueError(f"unit_counts {list(asked)} hold none from 1 to {agent.taps[tap][0]}, the units of {tap}")
    return counts


def earliest(found: Mapping[str, Sequence[FoundEdit]], keep: float = 0.95) -> tuple[str, FoundEdit]:
    """The smallest edit that works, at the earliest tap where one does.

    One works that reaches its entity in at least `keep` of as many mazes as the best of all taps; where nobody played,
    the probability of the asked moves decides.

    Args:
        found: by tap, in order of computation.
        keep: in 0 to 1.

    Returns:
        The tap and its edit.
    """
    best = max(_score(one) for edits in found.values() for one in edits)
    works = {tap: [one for one in edits if _score(one) >= keep * best] for tap, edits in found.items()}
    tap = next(tap for tap, edits in works.items() if edits)
    return tap, min(works[tap], key=lambda one: one.size)


def edit_size(edit: TapEdit) -> int:
    """Units that a channel edit changes, directions of one that mixes, detectors of one that repaints."""
    if isinstance(edit, ChannelEdit):
        return len(edit.units)
    return edit.rank if isinstance(edit, MixingEdit) else edit.hidden


def _score(one: FoundEdit) -> float:
    """The share of mazes in which the entity is reached; where nobody played, the probability of the asked moves."""
    return one.probability if math.isnan(one.reached) else one.reached


@torch.inference_mode()
def probability(agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves, precision: Precision = "fp32") -> float:
    """Mean probability that the edited agent takes a wanted action."""
    rows = torch.arange(len(moves.frames)).split(256)
    return float(torch.cat([_log_probability(agent, tap, edit, moves, part, precision).exp() for part in rows]).mean())


def _log_probability(
    agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves, rows: Tensor, precision: Precision = "fp32"
) -> Float[Tensor, " B"]:
    return _wanted(_edited(agent, tap, edit, moves.frames[rows], precision), moves, rows)


def _edited(
    agent: TappedAgent, tap: str, edit: nn.Module, frames: Tensor, precision: Precision, record: tuple[str, ...] = ()
) -> AgentOutput:
    device = next(agent.parameters()).device
    with autocast(precision, device):
        return agent.forward(frames.to(device), record=record, edits=[(tap, edit)])  # not __call__: not compiled


def _wanted(output: AgentOutput, moves: AskedMoves, rows: Tensor) -> Float[Tensor, " B"]:
    """Log-probability of a wanted action."""
    logits = output.logits
    assert logits is not None
    return logits.log_softmax(-1).masked_fill(~moves.wanted[rows].to(logits.device), -torch.inf).logsumexp(-1)


def seen_change(
    agent: TappedAgent,
    tap: str,
    edit: TapEdit,
    frames: UInt8[Tensor, "B 64 64 3"],
    readers: Mapping[str, CellReader],
    precision: Precision = "fp32",
) -> Float[Tensor, ""]:
    """How far an edit changes what is read: the Kullback-Leibler divergence of what each reader takes to lie at a
    position without the edit from what it does with it, in nats, summed over positions and readers, mean over frames.
    """
    edited = _edited(agent, tap, edit, frames, precision, tuple(readers)).activations
    return _reading_change(agent, frames, edited, readers, precision)


def _reading_change(
    agent: TappedAgent,
    frames: Tensor,
    edited: Mapping[str, Tensor],
    readers: Mapping[str, CellReader],
    precision: Precision,
) -> Float[Tensor, ""]:
    """The same, of activations with the edit that are at hand."""
    device = next(agent.parameters()).device
    with torch.no_grad(), autocast(precision, device):
        clean = agent.forward(frames.to(device), record=tuple(readers), outputs=False).activations
    changes = []
    for name, reader in readers.items():
        with torch.no_grad():
            was = reader(clean[name]).log_softmax(1)
        changes.append((was.exp() * (was - reader(edited[name]).log_softmax(1))).sum((1, 2, 3)).mean())
    return torch.stack(changes).sum()


@torch.inference_mode()
def _acts(agent: TappedAgent, tap: str, frames: Tensor) -> Float[Tensor, "B C *HW"]:
    device = next(agent.parameters()).device
    return agent.forward(frames[:NORM_FRAMES].to(device), record=(tap,), outputs=False).activations[tap]


def _mean_squares(agent: TappedAgent, tap: str, frames: Tensor) -> Float[Tensor, " C"]:
    return _acts(agent, tap, frames).square().movedim(1, -1).flatten(0, -2).mean(0).clone()


@torch.inference_mode()
def changed_outside(agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves) -> float:
    """Part of the squared change of a map, in 0 to 1, that lies outside the asked entity's cell and half a cell around
    it, in the first `NORM_FRAMES` frames; NaN of an edit that changes nothing.
    """
    acts = _acts(agent, tap, moves.frames)
    squares = edit.change(acts).float().square().sum(1)
    outside = moves.outside(torch.arange(len(acts)), *acts.shape[2:]).to(acts.device)
    return float(squares[outside].sum() / squares.sum())


@torch.inference_mode()
def peaks_inside(
    agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves
) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
    """Each channel's highest activation of a map in the asked entity's cell, without and with the edit; mean over the
    first `NORM_FRAMES` frames.
    """
    acts = _acts(agent, tap, moves.frames)
    height, width = acts.shape[2:]
    outside = moves.outside(torch.arange(len(acts)), height, width, around=0).to(acts.device)
    without, edited = (
        maps.float().masked_fill(outside[:, None], -torch.inf).amax((2, 3)).mean(0) for maps in (acts, edit(acts))
    )
    return without, edited


@torch.inference_mode()
def change_norm(agent: TappedAgent, tap: str, edit: TapEdit, moves: AskedMoves) -> float:
    """Root mean square of the change's norm across units, over positions of the first `NORM_FRAMES` frames."""
    return float(edit.change(_acts(agent, tap, moves.frames)).square().sum(1).mean().sqrt())
