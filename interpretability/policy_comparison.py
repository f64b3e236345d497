"""How edits change a policy and its values on the frames of play that they leave alone."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int

from interpretability.episodes import PlayedStep
from interpretability.follower import Follower
from interpretability.statistics import Interval, paired_bootstrap, ratio_of_means
from networks.precision import Precision
from networks.taps import AgentOutput, Edit, TappedAgent, TappedNetwork


class PolicyComparison:
    """What one edit changes, summed by level so that intervals can be drawn over levels.

    Attributes:
        frames: frames compared, by level.
        agreed: frames on which both policies have the same most likely action, by level.
        kl: sum over frames of KL(watched || edited) in nats, by level.
        value_errors: sum over frames of |edited value - watched value|, by level, in the value head's unit; NaN for a
            network without one.
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
        clean, other = step.logits.double().log_softmax(-1), edited.logits.cpu().double().log_softmax(-1)
        self.frames[rows] += 1  # a step shows a level once
        self.agreed[rows] += (other.argmax(-1) == clean.argmax(-1)).numpy()
        self.kl[rows] += (clean.exp() * (clean - other)).sum(-1).numpy()
        value = step.values if edited.value is None else edited.value.cpu()
        self.value_errors[rows] += (value.double() - step.values.double()).abs().numpy()

    def intervals(self) -> dict[str, Interval]:
        """`action_agreement`, `kl` and (of a value head) `value_error`: means over frames, bootstrapped over levels."""
        sums = {"action_agreement": self.agreed, "kl": self.kl, "value_error": self.value_errors}
        if np.isnan(self.value_errors).any():
            del sums["value_error"]
        return {name: paired_bootstrap(ratio_of_means, [each, self.frames]) for name, each in sums.items()}


class PolicyComparisons:
    """Observer: compares the policy of the play that it watches with that of each of several arms.

    Args:
        agent: who plays, without edits. One that remembers is followed in every arm from an episode's first step on.
        arms: edits by name.
        levels: every level of the play.
        precision: of the passes; that of the play.
        every: compare on every so-many-th step of a level.

    Attributes:
        of: what was found, by the arm's name.
    """

    def __init__(
        self,
        agent: TappedNetwork,
        arms: Mapping[str, Sequence[Edit]],
        levels: Sequence[int],
        precision: Precision,
        every: int = 1,
    ) -> None:
        self._followers = {name: Follower(agent, precision, edits=edits) for name, edits in arms.items()}
        self._remembers, self._every = not isinstance(agent, TappedAgent), every
        self._row = {level: row for row, level in enumerate(levels)}
        self.of = {name: PolicyComparison(len(levels)) for name in arms}

    def arrays(self) -> dict[str, np.ndarray]:
        """All that was found, as `ARM:WHAT`."""
        return {f"{name}:{what}": values for name, found in self.of.items() for what, values in vars(found).items()}

    def take(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Have found what another found before, as its `arrays` say; returns those that it does not know."""
        rest = dict(arrays)
        for name, found in self.of.items():
            vars(found).update({what: rest.pop(f"{name}:{what}") for what in vars(found)})
        return rest

    def __call__(self, step: PlayedStep) -> None:
        chosen = np.flatnonzero(step.steps % self._every == 0)
        if len(chosen) == 0 and not self._remembers:
            return
        compared = PlayedStep._make(column[chosen] for column in step)
        rows = [self._row[level] for level in compared.levels.tolist()]
        for name, follower in self._followers.items():
            output = follower(step if self._remembers else compared)
            if self._remembers:
                assert output.logits is not None
                output = AgentOutput(output.logits[chosen], None, {})
            self.of[name].update(rows, compared, output)
