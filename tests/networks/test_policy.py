import torch

from networks import log_probabilities, sample_actions


def test_sampling_follows_the_softmax():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    noise = torch.rand(200_000, 4, generator=torch.Generator().manual_seed(0))
    actions = sample_actions(logits.expand(200_000, 4), noise)
    shares = torch.bincount(actions, minlength=4) / 200_000
    torch.testing.assert_close(shares, logits.softmax(-1)[0], atol=5e-3, rtol=0)


def test_noise_at_its_ends_stays_finite_and_greedy_takes_the_best():
    logits = torch.tensor([[0.0, 3.0], [5.0, 1.0]])
    assert sample_actions(logits, torch.tensor([[0.0, 0.5], [0.5, 0.0]])).tolist() == [1, 0]
    assert sample_actions(logits, None).tolist() == [1, 0]


def test_log_probabilities_agree_with_torch_distributions():
    logits = torch.randn(10, 15)
    actions = torch.randint(15, (10,))
    expected = torch.distributions.Categorical(logits=logits).log_prob(actions)
    torch.testing.assert_close(log_probabilities(logits, actions), expected)
