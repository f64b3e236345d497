"""The losses of proximal policy optimisation (Schulman et al. 2017) as pure functions of one minibatch.

Signs are those of losses: what is returned is minimised. Means are over the batch.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class PolicyLoss(NamedTuple):
    """The clipped surrogate and what it says about the size of the step."""

    loss: Float[Tensor, ""]
    approx_kl: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]


def clipped_policy_loss(
    log_probs: Float[Tensor, " B"],
    old_log_probs: Float[Tensor, " B"],
    advantages: Float[Tensor, " B"],
    clip: float,
) -> PolicyLoss:
    """Eq. 7 of the paper, with the estimator (r - 1) - log r of KL(old || new) (Schulman, "Approximating KL").

    Args:
        log_probs: of the taken actions under the policy being trained.
        old_log_probs: of the same actions when they were taken.
        advantages: normalised.
        clip: epsilon, the largest change of the ratio that is rewarded.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).to(ratio.dtype).mean()
    return PolicyLoss(-surrogate.mean(), approx_kl, clip_fraction)


def clipped_value_loss(
    values: Float[Tensor, " B"],
    old_values: Float[Tensor, " B"],
    returns: Float[Tensor, " B"],
    clip: float,
) -> Float[Tensor, ""]:
    """Half the squared error, the larger of the plain and the clipped one (baselines' PPO2).

    Args:
        values: predicted by the network being trained.
        old_values: predicted when the frames were collected.
        returns: the targets.
        clip: how far a value may move from the old one before it stops being rewarded.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2).mean()


def policy_entropy(logits: Float[Tensor, "B A"]) -> Float[Tensor, ""]:
    """Mean entropy of a categorical policy, in nats."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def policy_divergence(reference_logits: Float[Tensor, "B A"], logits: Float[Tensor, "B A"]) -> Float[Tensor, ""]:
    """Mean KL(reference || policy) in nats: what the reference does must stay likely."""
    reference = reference_logits.log_softmax(-1)
    return (reference.exp() * (reference - logits.log_softmax(-1))).sum(-1).mean()


def explained_variance(predictions: Float[Tensor, " B"], targets: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """1 - Var(target - prediction) / Var(target); 0 where the targets do not vary."""
    total = targets.var(correction=0)
    rest = (targets - predictions).var(correction=0)
    return torch.where(total > 0, 1 - rest / total.clamp_min(torch.finfo(total.dtype).tiny), 0.0)
