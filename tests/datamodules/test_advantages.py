import pytest
import torch

from datamodules.advantages import RewardNormaliser, generalised_advantages

DISCOUNT, LAMBDA = 0.97, 0.9


def naive_advantages(rewards, values, first, cut):
    """One environment at a time, forward: the sum of discounted errors until the episode ends or is cut."""
    steps, slots = rewards.shape
    advantages = torch.zeros(steps, slots, dtype=torch.float64)
    for n in range(slots):
        for t in range(steps):
            if cut[t, n]:
                continue
            weight = 1.0
            for s in range(t, steps):
                if s > t and cut[s, n]:
                    break
                ended = bool(first[s + 1, n])
                following = 0.0 if ended else float(values[s + 1, n])
                advantages[t, n] += weight * (float(rewards[s, n]) + DISCOUNT * following - float(values[s, n]))
                if ended:
                    break
                weight *= DISCOUNT * LAMBDA
    return advantages


def random_rollout(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps, slots = 40, 6
    rewards = torch.randn(steps, slots, generator=generator, dtype=dtype)
    values = torch.randn(steps + 1, slots, generator=generator, dtype=dtype)
    first = torch.rand(steps + 1, slots, generator=generator) < 0.15
    cut = torch.rand(steps, slots, generator=generator) < 0.1
    first[1:] |= cut  # a cut always begins another level
    return rewards, values, first, cut


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_advantages_match_a_naive_loop(dtype, tolerance):
    rewards, values, first, cut = random_rollout(dtype)
    found = generalised_advantages(rewards, values, first, cut, DISCOUNT, LAMBDA)
    expected = naive_advantages(rewards, values, first, cut)
    torch.testing.assert_close(found.advantages.double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.returns.double(), expected + values[:-1].double(), atol=tolerance, rtol=0)


def test_reward_beside_first_belongs_to_the_episode_that_ended():
    rewards = torch.tensor([[0.0], [10.0], [0.0]])
    values = torch.tensor([[1.0], [2.0], [50.0], [50.0]])
    first = torch.tensor([[True], [False], [True], [False]])  # the second action ended the level
    found = generalised_advantages(rewards, values, first, torch.zeros(3, 1, dtype=torch.bool), 1.0, 1.0)
    assert found.advantages[:2, 0].tolist() == [9.0, 8.0]
    assert found.returns[:2, 0].tolist() == [10.0, 10.0]


def test_first_of_the_first_row_is_not_looked_at():
    rewards, values, first, cut = random_rollout(torch.float32)
    before = generalised_advantages(rewards, values, first, cut, DISCOUNT, LAMBDA)
    first[0] = ~first[0]
    after = generalised_advantages(rewards, values, first, cut, DISCOUNT, LAMBDA)
    assert torch.equal(before.advantages, after.advantages)


def test_a_cut_bootstraps_where_an_end_does_not():
    rewards = torch.zeros(3, 1)
    values = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
    first = torch.tensor([[True], [False], [True], [False]])
    cut = torch.tensor([[False], [True], [False]])
    found = generalised_advantages(rewards, values, first, cut, 1.0, 1.0)
    assert found.advantages[:2, 0].tolist() == [1.0, 0.0]  # the value of the frame that the cut was made on, less ours
    ended = generalised_advantages(rewards, values, first, torch.zeros_like(cut), 1.0, 1.0)
    assert ended.advantages[:2, 0].tolist() == [-1.0, -2.0]


def test_normaliser_divides_by_the_deviation_of_the_discounted_return():
    generator = torch.Generator().manual_seed(0)
    normaliser = RewardNormaliser(num_environments=3, discount=0.9)
    running, seen = [0.0] * 3, []
    for _ in range(4):
        rewards = 10 * (torch.rand(50, 3, generator=generator) < 0.05).float()
        ended = torch.rand(50, 3, generator=generator) < 0.1
        scaled = normaliser(rewards, ended)
        for t in range(50):
            for n in range(3):
                running[n] = running[n] * 0.9 + float(rewards[t, n])
                seen.append(running[n])
                if ended[t, n]:
                    running[n] = 0.0
        deviation = torch.tensor(seen, dtype=torch.float64).std(correction=0).item()
        # the tiny pseudo-count that the statistics begin with is seen in the fifth digit
        torch.testing.assert_close(scaled, (rewards / deviation).clamp(-10, 10), rtol=1e-4, atol=1e-4)


def test_normaliser_clips():
    normaliser = RewardNormaliser(num_environments=1, discount=0.0, clip=3.0)
    rewards = torch.zeros(1000, 1)
    rewards[0] = 10.0
    assert normaliser(rewards, torch.zeros(1000, 1, dtype=torch.bool)).max() == 3.0


def test_normaliser_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(20, 2, generator=generator), torch.rand(20, 2, generator=generator) < 0.2) for _ in range(3)]
    whole, resumed = RewardNormaliser(2, 0.9), RewardNormaliser(2, 0.9)
    for batch in batches[:2]:
        whole(*batch)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(whole(*batches[2]), resumed(*batches[2]))
