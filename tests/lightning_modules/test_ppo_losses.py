import math

import pytest
import torch

from lightning_modules.ppo_losses import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    policy_divergence,
    policy_entropy,
)
from networks import log_probabilities

ROWS, ACTIONS, CLIP = 200, 5, 0.2


@pytest.fixture
def minibatch():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits, old_logits = normal(ROWS, ACTIONS), normal(ROWS, ACTIONS)
    old_logits = logits + 0.3 * old_logits
    return {
        "logits": logits,
        "old_logits": old_logits,
        "actions": torch.randint(ACTIONS, (ROWS,), generator=generator),
        "advantages": normal(ROWS),
        "values": normal(ROWS),
        "old_values": normal(ROWS),
        "returns": normal(ROWS),
    }


def probabilities(logits):
    """Plain Python, one row at a time."""
    rows = []
    for row in logits.tolist():
        total = sum(math.exp(logit) for logit in row)
        rows.append([math.exp(logit) / total for logit in row])
    return rows


def test_policy_loss_matches_a_naive_loop(minibatch):
    new, old = probabilities(minibatch["logits"]), probabilities(minibatch["old_logits"])
    loss = kl = clipped = 0.0
    for row, action in enumerate(minibatch["actions"].tolist()):
        ratio, advantage = new[row][action] / old[row][action], float(minibatch["advantages"][row])
        loss -= min(ratio * advantage, min(max(ratio, 1 - CLIP), 1 + CLIP) * advantage) / ROWS
        kl += (ratio - 1 - math.log(ratio)) / ROWS
        clipped += (abs(ratio - 1) > CLIP) / ROWS
    log_probs = log_probabilities(minibatch["logits"], minibatch["actions"])
    old_log_probs = log_probabilities(minibatch["old_logits"], minibatch["actions"])
    found = clipped_policy_loss(log_probs, old_log_probs, minibatch["advantages"], CLIP)
    assert 0.1 < clipped < 0.9
    assert [float(part) for part in found] == pytest.approx([loss, kl, clipped], abs=1e-12)


def test_value_loss_matches_a_naive_loop(minibatch):
    expected = 0.0
    for value, old, target in zip(
        minibatch["values"].tolist(), minibatch["old_values"].tolist(), minibatch["returns"].tolist(), strict=True
    ):
        clipped = old + min(max(value - old, -CLIP), CLIP)
        expected += 0.5 * max((value - target) ** 2, (clipped - target) ** 2) / ROWS
    found = clipped_value_loss(minibatch["values"], minibatch["old_values"], minibatch["returns"], CLIP)
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_value_loss_without_a_bound_is_half_the_squared_error(minibatch):
    values, returns = minibatch["values"], minibatch["returns"]
    found = clipped_value_loss(values, minibatch["old_values"], returns, math.inf)
    torch.testing.assert_close(found, 0.5 * (values - returns).square().mean())


def test_entropy_and_divergence_match_a_naive_loop(minibatch):
    new, old = probabilities(minibatch["logits"]), probabilities(minibatch["old_logits"])
    entropy = -sum(p * math.log(p) for row in new for p in row) / ROWS
    divergence = sum(
        q * math.log(q / p)
        for new_row, old_row in zip(new, old, strict=True)
        for p, q in zip(new_row, old_row, strict=True)
    )
    assert float(policy_entropy(minibatch["logits"])) == pytest.approx(entropy, abs=1e-12)
    found = policy_divergence(minibatch["old_logits"], minibatch["logits"])
    assert float(found) == pytest.approx(divergence / ROWS, abs=1e-12)


def test_no_gradient_beyond_the_clip():
    old = torch.zeros(2)
    log_probs = torch.tensor([math.log(1.5), math.log(0.5)], requires_grad=True)
    clipped_policy_loss(log_probs, old, torch.tensor([1.0, -1.0]), CLIP).loss.backward()
    assert log_probs.grad.tolist() == [0.0, 0.0]


def test_explained_variance_is_about_the_mean():
    targets = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(targets + 7, targets) == 1.0
    assert explained_variance(torch.full((4,), 2.5), targets) == 0.0
    assert explained_variance(-targets, targets) == -3.0
    assert explained_variance(torch.rand(4), torch.ones(4)) == 0.0
