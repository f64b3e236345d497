import pytest
import torch

from networks import FiringCounter, Progress, ProgressNow


def test_matches_a_list_of_everything_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    counter = FiringCounter(4, window=50)
    seen: list[torch.Tensor] = []
    since_window = [0]  # where the windows of the counter begin
    for _ in range(40):
        inputs = int(torch.randint(5, 20, (), generator=generator))
        fired = torch.rand(inputs, 4, generator=generator) < torch.tensor([0.5, 0.02, 0.0, 0.1])
        fired[:, 1] &= len(seen) < 100  # stops firing
        if len(seen) - since_window[-1] >= 50:
            since_window.append(len(seen))
        seen.extend(fired)
        counter.update(fired.sum(0), inputs)
        everything = torch.stack(seen)
        counted = everything[since_window[-2] if len(since_window) > 1 else 0 :]
        torch.testing.assert_close(counter.frequency(), counted.double().mean(0))
        assert 50 <= len(counted) < 120 or len(seen) < 50
        # a batch is the grain: dead are those without a firing in the batches that make up the window
        assert not counter.dead()[everything[-30:].any(0)].any()
        assert counter.dead()[2] == (len(seen) >= 50)
    assert counter.dead().tolist() == [False, True, True, False]
    assert counter.seen == len(seen)


def test_survives_a_checkpoint_and_forgets_on_demand() -> None:
    counter = FiringCounter(3, window=10)
    counter.update(torch.tensor([1, 0, 0]), 12)
    again = FiringCounter(3, window=10)
    again.load_state_dict(counter.state_dict())
    assert again.dead().tolist() == [False, True, True]
    again.forget(torch.tensor([False, True, False]))
    assert again.dead().tolist() == [False, False, True]
    again.update(torch.tensor([0, 0, 0]), 10)
    assert again.dead().tolist() == [True, True, True]


def test_refuses_an_empty_window() -> None:
    with pytest.raises(ValueError, match="window"):
        FiringCounter(3, 0)


def test_progress_is_what_the_counter_says_when_asked() -> None:
    counter = FiringCounter(3, window=10)
    counter.update(torch.tensor([6, 0, 3]), 12)
    now = ProgressNow(7, counter)
    assert now.number == now.tensors().number == 7
    expected = Progress(torch.tensor(7.0), torch.tensor([0.5, 0.0, 0.25]), torch.tensor([False, True, False]))
    for got, wanted in zip(now.tensors(), expected, strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
