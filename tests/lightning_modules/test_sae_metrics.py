from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_modules.sae_metrics import (
    Coverage,
    ExplainedVariance,
    Firing,
    Sparsity,
    channel_cosines,
    effective_number,
    nearest_cosines,
)


def naive_variance(acts: Tensor, reconstruction: Tensor, per_position: bool) -> tuple[float, int]:
    """Everything at once, in float64; channels or neurons in a loop."""
    x, y = acts.double().numpy(), reconstruction.double().numpy()
    if not per_position:
        x, y = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]), np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    error = total = 0.0
    constant = 0
    for column in range(x.shape[1]):
        if (x[:, column] == x[0, column]).all():
            constant += 1
            continue
        error += ((x[:, column] - y[:, column]) ** 2).sum()
        total += ((x[:, column] - x[:, column].mean()) ** 2).sum()
    return 1 - error / total, constant


@pytest.mark.parametrize(("space", "dtype"), [((), torch.float32), ((3, 2), torch.float32), ((3, 2), torch.bfloat16)])
def test_explained_variance_matches_naive_code(space: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    acts = (torch.randn(50, 5, *space) + 100 * torch.randn(5, *[1] * len(space))).to(dtype)
    acts[:, 2] = 7.3  # a channel that never changes; its error does not count
    if space:
        acts[:, 4, 1, 1] = 0  # a neuron that never changes, in a channel that does
    reconstruction = (acts + 0.1 * torch.randn_like(acts)).to(dtype)
    reconstruction[:, 2] += 5
    metric = ExplainedVariance((5, *space))
    for rows in torch.arange(50).split(13):  # uneven batches
        metric.update(reconstruction[rows], acts[rows])
    values = metric.compute()
    for name, count, per_position in (
        ("explained_variance", "zero_variance_channels", False),
        ("explained_variance_position", "zero_variance_neurons", True),
    ):
        expected, constant = naive_variance(acts, reconstruction, per_position)
        assert values[name].item() == pytest.approx(expected, abs=1e-9)
        assert values[count] == constant
    assert values["zero_variance_channels"] == 1
    alone = [naive_variance(acts[:, [channel]], reconstruction[:, [channel]], False)[0] for channel in (0, 1, 3, 4)]
    assert metric.by_channel[[0, 1, 3, 4]].tolist() == pytest.approx(alone, abs=1e-9)
    assert metric.by_channel[2].isnan()
    assert values["explained_variance_least_channel"].item() == pytest.approx(min(alone), abs=1e-9)
    assert values["zero_variance_neurons"] == (7 if space else 1)


def test_nothing_varies() -> None:
    metric = ExplainedVariance((2,))
    metric.update(torch.ones(4, 2), torch.ones(4, 2))
    assert metric.compute()["explained_variance_least_channel"].isnan()
    assert metric.by_channel.isnan().all()


def test_the_mean_explains_nothing() -> None:
    """Variance is about the mean: measured from zero the same reconstruction would score .9999."""
    acts = torch.randn(1000, 3) + 100
    metric = ExplainedVariance((3,))
    metric.update(acts.mean(0).expand(1000, 3), acts)
    assert metric.compute()["explained_variance"].item() == pytest.approx(0, abs=1e-4)


def test_a_per_position_mean_explains_less() -> None:
    pattern = torch.randn(1, 2, 4, 4)
    acts = pattern + 0.1 * torch.randn(200, 2, 4, 4)
    metric = ExplainedVariance((2, 4, 4))
    metric.update(pattern.expand_as(acts), acts)
    values = metric.compute()
    assert values["explained_variance"] > 0.95
    assert abs(values["explained_variance_position"]) < 0.05


def test_sparsity_matches_naive_code() -> None:
    torch.manual_seed(0)
    latents = (torch.randn(30, 6, 3, 2) - 0.5).relu()
    latents[:, 4] = 0
    inside = torch.rand(30, 3, 2) < 0.6
    metric = Sparsity(6)
    for rows in torch.arange(30).split(11):
        metric.update(latents[rows], inside[rows])
    counts = [
        (int((latents[row, :, y, x] > 0).sum()), bool(inside[row, y, x]))
        for row in range(30)
        for y in range(3)
        for x in range(2)
    ]
    values = metric.compute()
    assert values["l0"].item() == pytest.approx(np.mean([count for count, _ in counts]))
    assert values["l0_inside"].item() == pytest.approx(np.mean([count for count, within in counts if within]))
    assert values["dead_fraction"].item() == pytest.approx(1 / 6)
    flat = Sparsity(6)
    flat.update(latents.movedim(1, -1).flatten(0, -2))
    assert flat.compute()["l0"] == values["l0"]
    assert flat.compute()["l0_inside"].isnan()


@pytest.mark.parametrize("space", [(4, 3), ()])
def test_firing_matches_naive_code(space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    latents = (torch.randn(30, 5, *space) - 0.8).relu()
    latents[:, 2] = 0
    metric = Firing(5, space)
    for rows in torch.arange(30).split(11):
        metric.update(latents[rows])
    found = metric.compute()
    maps = latents.double().numpy().reshape(30, 5, *(space or (1, 1)))
    for latent in (0, 1, 3, 4):
        values, places, squares = [], Counter(), []
        for frame in maps[:, latent]:
            firings = np.argwhere(frame > 0)
            values += [frame[tuple(place)] for place in firings]
            places.update(map(tuple, firings.tolist()))
            squares += [((place - firings.mean(0)) ** 2).sum() for place in firings]
        shares = np.array(list(places.values())) / len(values)
        assert found["frequency"][latent].item() == pytest.approx(len(values) / maps[:, 0].size)
        assert found["mean_active"][latent].item() == pytest.approx(np.mean(values))
        assert found["spread"][latent].item() == pytest.approx(np.sqrt(np.mean(squares)), abs=1e-6)
        assert found["places"][latent].item() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found["frequency"][2] == 0
    assert all(found[name][2].isnan() for name in ("mean_active", "spread", "places"))


def test_spread_tells_a_spot_that_wanders_from_a_carpet() -> None:
    latents = torch.zeros(64, 2, 8, 8)
    latents[torch.arange(64), 0, torch.arange(64) // 8, torch.arange(64) % 8] = 1
    latents[:, 1] = 1
    metric = Firing(2, (8, 8))
    metric.update(latents)
    found = metric.compute()
    assert found["spread"].tolist() == pytest.approx([0, np.sqrt(2 * 63 / 12)])
    assert found["places"].tolist() == pytest.approx([64, 64])


def test_spread_is_the_same_under_autocast() -> None:
    latents = torch.zeros(20, 1, 64, 64)
    latents[:, 0, -3:, -3:] = 1  # far from the middle: sums of squares are large beside their differences
    metric = Firing(1, (64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        metric.update(latents)
    assert metric.compute()["spread"].item() == pytest.approx(np.sqrt(2 * 8 / 12))


def test_sizes_weigh_the_lengths_of_directions() -> None:
    torch.manual_seed(0)
    latents, lengths = torch.rand(30, 6, 3, 2).relu(), torch.rand(6)
    metric, raw = Sparsity(6), Sparsity(6)
    for rows in torch.arange(30).split(11):
        metric.update(latents[rows], lengths=lengths)
        raw.update(latents[rows])
    values = latents.movedim(1, -1).reshape(-1, 6).double().tolist()
    weighted = [sum(value * float(length) for value, length in zip(row, lengths, strict=True)) for row in values]
    assert metric.compute()["l1"].item() == pytest.approx(np.mean(weighted))
    assert raw.compute()["l1"].item() == pytest.approx(np.mean([sum(row) for row in values]))


def test_almost_dead_is_below_one_position_in_100_000() -> None:
    metric = Sparsity(4)
    latents = torch.zeros(200_000, 4)
    latents[:1, 1] = latents[:2, 2] = latents[:3, 3] = 1  # never, 0.5e-5, exactly 1e-5, 1.5e-5
    for part in latents.split(70_000):
        metric.update(part)
    values = metric.compute()
    assert values["dead_fraction"] == 0.25
    assert values["almost_dead_fraction"] == 0.5


def test_nearest_cosines_match_naive_code() -> None:
    torch.manual_seed(0)
    directions = torch.randn(9, 4)
    directions[3] = 5 * directions[7]
    directions[5] = 0
    x = directions.double().numpy()
    expected = []
    for one in range(9):
        others = [two for two in range(9) if two != one]
        lengths = np.linalg.norm(x, axis=1)
        products = [x[one] @ x[two] / max(lengths[one] * lengths[two], 1e-30) for two in others]
        expected.append(max(products))
    assert nearest_cosines(directions).tolist() == pytest.approx(expected, abs=1e-6)
    assert nearest_cosines(directions)[[3, 7]].tolist() == pytest.approx([1, 1])
    assert nearest_cosines(directions[:1]).isnan().all()


def test_dead_is_over_everything_not_one_batch() -> None:
    metric = Sparsity(2)
    metric.update(torch.tensor([[1.0, 0.0]]))
    metric.update(torch.tensor([[0.0, 1.0]]))
    assert metric.compute()["dead_fraction"] == 0


def test_coverage_counts_frames_and_distinct_levels() -> None:
    metric = Coverage()
    metric.update(torch.tensor([3, 3, 5], dtype=torch.int32))
    metric.update(torch.tensor([5, 9], dtype=torch.int32))
    assert {name: int(value) for name, value in metric.compute().items()} == {
        "validation_frames": 5,
        "validation_levels": 3,
    }


def _reduce_over_two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    acts, reconstruction, latents, levels = torch.load(f"{folder}/data.pt")
    half = slice(0, 13) if rank == 0 else slice(13, 40)
    variance, sparsity, coverage = ExplainedVariance((3, 2, 2)), Sparsity(4), Coverage()
    firing = Firing(4, (2, 2))
    firing.update(latents[half])
    variance.update(reconstruction[half], acts[half])
    sparsity.update(latents[half])
    coverage.update(levels[half])
    values = {**variance.compute(), **sparsity.compute(), **coverage.compute(), **firing.compute()}
    values["by_channel"] = variance.by_channel
    torch.save(values, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_reduces_over_ranks(tmp_path: object) -> None:
    torch.manual_seed(0)
    acts = torch.randn(40, 3, 2, 2)
    acts[:, 1] = torch.where(torch.arange(40) < 13, 1.0, 2.0)[:, None, None]  # constant on each rank, not over both
    latents = torch.zeros(40, 4, 2, 2)
    latents[0, 0] = latents[20, 1] = 1  # each fires on one rank only
    data = (acts, acts + 0.1, latents, torch.arange(40) // 4)
    torch.save(data, f"{tmp_path}/data.pt")
    # forked, for to import torch again takes much longer than what is tested
    torch.multiprocessing.start_processes(_reduce_over_two_ranks, (str(tmp_path),), nprocs=2, start_method="fork")
    variance, sparsity, coverage = ExplainedVariance((3, 2, 2)), Sparsity(4), Coverage()
    firing = Firing(4, (2, 2))
    firing.update(latents)
    variance.update(data[1], data[0])
    sparsity.update(latents)
    coverage.update(data[3])
    for rank in (0, 1):
        values = torch.load(f"{tmp_path}/rank{rank}.pt")
        metrics = (variance, sparsity, coverage, firing)
        expected_values = {name: value for metric in metrics for name, value in metric.compute().items()}
        for name, expected in (expected_values | {"by_channel": variance.by_channel}).items():
            torch.testing.assert_close(values[name], expected, equal_nan=True, check_dtype=False)


def test_channel_cosines_tell_raw_channels_from_mixtures() -> None:
    directions = torch.tensor([[0.0, -3.0, 0.0], [1.0, 1.0, 0.0], [2.0, 3.0, 6.0], [0.0, 0.0, 0.0]])
    assert channel_cosines(directions).tolist() == pytest.approx([1, 0.5**0.5, 6 / 7, 0])


def test_the_effective_number_counts_equal_shares() -> None:
    assert effective_number(torch.tensor([2.0, 2.0, 0.0, 2.0])) == pytest.approx(3)
    assert effective_number(torch.tensor([0.0, 5.0])) == pytest.approx(1)
    assert effective_number(torch.tensor([9.0, 1.0])) == pytest.approx((10 / 9) ** 0.9 * 10**0.1)
    assert effective_number(torch.zeros(3)).isnan()
