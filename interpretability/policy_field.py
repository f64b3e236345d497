"""Where an agent would go from every cell of a maze: its mean move, as a field of arrows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from torch import Tensor

from environments import EnvironmentSettings, State, render_states
from environments.heist import ACTION_STEPS, DIRECTION_STEPS, label_states, occupied_cells, place_player
from environments.state import WALL
from interpretability.episodes import evaluating
from networks import DEFAULT_PRECISION, Edit, Precision, TappedAgent, autocast

_AT_ONCE = 64


@dataclass(frozen=True)
class PolicyField:
    """The policy at C cells of one maze, the player at rest in the middle of each.

    Attributes:
        frame: the maze, with the player where it was.
        side: cells a side of the world, which the frame shows whole.
        cells: (x, y), y upwards.
        moves: expected (dx, dy) of the action, between -1 and 1 each; actions that do not move count as 0.
        probabilities: of all actions.
        oracle: first move of the shortest solution from each cell; 0, 0 where there is none or several are as short.
    """

    frame: UInt8[np.ndarray, "64 64 3"]
    side: int
    cells: Int[np.ndarray, "C 2"]
    moves: Float[np.ndarray, "C 2"]
    probabilities: Float[np.ndarray, "C A"]
    oracle: Float[np.ndarray, "C 2"]

    def alignment(self) -> Float[np.ndarray, " C"]:
        """Cosine between the expected move and the oracle's; NaN where the oracle has none, 0 where nobody moves."""
        lengths = np.linalg.norm(self.moves, axis=1)
        cosine = (self.moves * self.oracle).sum(1) / np.maximum(lengths, 1e-9)
        return np.where(np.abs(self.oracle).sum(1) > 0, cosine, np.nan)


@torch.no_grad()
def policy_field(
    agent: TappedAgent,
    state: State,
    settings: EnvironmentSettings,
    *,
    edits: Sequence[Edit] = (),
    precision: Precision = DEFAULT_PRECISION,
) -> PolicyField:
    """Put the player into every free and empty cell of a state and ask the agent.

    Args:
        agent: on the device where its parameters are.
        state: of heist, in a mode whose frame shows the whole world.
        settings: the game.
        edits: put in at taps.
        precision: of the passes.

    Raises:
        ValueError: a state without a free cell, or an unknown tap.
    """
    agent.check_edits(edits)
    taken = {cell for cell, names in occupied_cells(state).items() if names != ["player"]}
    cells = [(x, y) for y, x in np.argwhere(state.grid != WALL).tolist() if (x, y) not in taken]
    if not cells:
        raise ValueError("this state has no free cell to put the player in")
    states = [place_player(state, cell).to_bytes() for cell in cells]
    frames = render_states([state.to_bytes(), *states], settings)
    device = next(agent.parameters()).device
    logits: list[Tensor] = []
    with evaluating(agent, *(edit for _, edit in edits)):
        for part in torch.from_numpy(frames[1:]).split(_AT_ONCE):
            with autocast(precision, device):
                output = agent.forward(part.to(device), edits=edits)
            assert output.logits is not None
            logits.append(output.logits.float().cpu())
    probabilities = torch.cat(logits).softmax(1).numpy()
    labels = label_states(states)
    steps = np.array([*DIRECTION_STEPS, (0, 0)], dtype=np.float32)
    known = np.where(labels.direction_tied, -1, labels.direction)
    side = state.grid.shape[0]
    moves = probabilities[:, : len(ACTION_STEPS)] @ np.array(ACTION_STEPS, dtype=np.float32)
    return PolicyField(frames[0], side, np.array(cells), moves, probabilities, steps[known])


def draw_field(
    axes: Axes, field: PolicyField, arrows: Float[np.ndarray, "C 2"], title: str, colour: str = "#ff2d78"
) -> None:
    """A field over its maze; a whole cell long is a move that is certain. Cells without a move get a dot."""
    axes.imshow(field.frame, extent=(0, field.side, 0, field.side), interpolation="nearest")
    x, y = (field.cells + 0.5).T
    axes.quiver(
        x, y, arrows[:, 0], arrows[:, 1], color=colour, pivot="mid", angles="xy", scale_units="xy", scale=1.15,
        width=0.009, edgecolor="white", linewidth=0.5,
    )  # fmt: skip
    still = np.linalg.norm(arrows, axis=1) < 0.05
    axes.plot(x[still], y[still], ".", color=colour, markersize=3)
    axes.set_title(title, fontsize=9)
    axes.axis("off")
