"""How edits change a policy and its values on the frames of play that they leave alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int

from interpretability.episodes import PlayedStep
from interpretability.statistics import Interval, paired_bootstrap, ratio_of_means
from networks.precision import Precision, autocast
from networks.taps import AgentOutput, Edit, TappedAgent


class PolicyComparison:
    """What one edit changes, summed by level so that intervals can be drawn over levels.

    Attributes:
        frames: frames compared, by level.
        agreed: frames on which both policies have the same most likely action, by level.
        kl: sum over frames of KL(watched || edited) in nats, by level.
        value_errors: sum over frames of |edited value - watched value|, by level, in the value head's unit.
    """

    frames: Int[np.ndarray, " L"]
    agreed: Int[np.ndarray, " L"]
    kl: Float64[np.ndarray, " L"]
    value_errors: Float64[np.ndarray, " L"]

    def __init__(self, levels: int) -> None:
        self.frames, self.agreed = np.zeros((2, levels), dtype=np.int64)
        self.kl, self.value_errors = np.zeros((2, levels))

    def update(self, rows: Sequence[int], step: PlayedStep, edited: AgentOutput) -> None:
        """Add what the edited agent makes of a step, whose slots play the levels of these rows."""
        assert edited.logits is not None
        assert edited.value is not None
        clean, other = step.logits.double().log_softmax(-1), edited.logits.cpu().double().log_softmax(-1)
        self.frames[rows] += 1  # a step shows a level once
        self.agreed[rows] += (other.argmax(-1) == clean.argmax(-1)).numpy()
        self.kl[rows] += (clean.exp() * (clean - other)).sum(-1).numpy()
        self.value_errors[rows] += (edited.value.cpu().double() - step.values.double()).abs().numpy()

    def intervals(self) -> dict[str, Interval]:
        """`action_agreement`, `kl` and `value_error`: means over frames, bootstrapped over levels."""
        sums = {"action_agreement": self.agreed, "kl": self.kl, "value_error": self.value_errors}
        return {name: paired_bootstrap(ratio_of_means, [each, self.frames]) for name, each in sums.items()}


class PolicyComparisons:
    """Observer: compares the policy of the play that it watches with that of each of several arms.

    Args:
        agent: who plays, without edits.
        arms: edits by name.
        levels: every level of the play.
        precision: of the passes; that of the play.
        every: compare on every so-many-th step of a level.

    Attributes:
        of: what was found, by the arm's name.
    """

    def __init__(
        self,
        agent: TappedAgent,
        arms: Mapping[str, Sequence[Edit]],
        levels: Sequence[int],
        precision: Precision,
        every: int = 1,
    ) -> None:
        self._agent, self._arms, self._every = agent, {name: tuple(edits) for name, edits in arms.items()}, every
        self._precision: Precision = precision
        self._device = next(agent.parameters()).device
        self._row = {level: row for row, level in enumerate(levels)}
        self.of = {name: PolicyComparison(len(levels)) for name in arms}

    def __call__(self, step: PlayedStep) -> None:
        chosen = np.flatnonzero(step.steps % self._every == 0)
        if len(chosen) == 0:
            return
        compared = PlayedStep._make(column[chosen] for column in step)
        rows = [self._row[level] for level in compared.levels.tolist()]
        frames = torch.from_numpy(compared.frames).to(self._device)
        for name, edits in self._arms.items():
            with autocast(self._precision, self._device):
                output = self._agent(frames, edits=edits)
            self.of[name].update(rows, compared, output)
