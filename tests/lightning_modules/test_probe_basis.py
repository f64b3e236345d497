import torch
from torch.nn.functional import pad

from lightning_modules.probe_basis import leading_components, plain, shared_over_positions
from lightning_modules.probe_fit import fit_path
from lightning_modules.probe_losses import ClassLoss

CHANNELS, PLACES, ROWS = 3, 6, 400


def maps(seed: int, rows: int = ROWS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, CHANNELS, PLACES, generator=generator) * torch.rand(CHANNELS, PLACES, generator=generator)


def test_what_is_read_in_any_basis_is_read_from_the_features_themselves() -> None:
    acts = maps(0).flatten(1)
    std = acts.std(0)
    features = {"training": (acts - acts.mean(0)) / std}
    for basis in (
        plain(features),
        leading_components(features, std),
        shared_over_positions({"training": pad(features["training"], (0, CHANNELS))}, std, CHANNELS, 5),
    ):
        given = basis.features["training"]
        weights = torch.randn(2, given.shape[1], generator=torch.Generator().manual_seed(1))
        read = features["training"] @ basis.read_back(weights).T
        torch.testing.assert_close(read, given @ weights.T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(basis.standardised["training"], features["training"])


def test_shared_features_are_means_over_positions_in_the_units_of_the_map() -> None:
    acts = maps(0)
    acts[:, 2] = 1.0  # a channel that never changes
    flat = acts.flatten(1)
    std = flat.std(0).where(flat.std(0) > 0, 1.0)
    wide = {"training": pad((flat - flat.mean(0)) / std, (0, CHANNELS))}
    basis = shared_over_positions(wide, std, CHANNELS, sharing=5)
    shared = basis.features["training"][:, CHANNELS * PLACES :]
    expected = torch.stack([row.mean(1) for row in acts])
    expected = 5 * (expected - expected.mean(0)) / expected.std(0).where(expected.std(0) > 0, 1.0)
    torch.testing.assert_close(shared, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(shared[:, 2], torch.zeros(ROWS))


def test_few_rows_suffice_for_what_lies_anywhere_and_nothing_is_lost_of_what_lies_at_a_place() -> None:
    """Is channel 0 high somewhere? And is it high at place 2?"""
    scores = {}
    for sharing in (0, 10):
        for rows, question in ((60, "anywhere"), (4_000, "place")):
            splits = {"training": maps(2, rows), "validation": maps(3, 300), "test": maps(4, 2_000)}
            generator = torch.Generator().manual_seed(5)
            labels = {}
            for split, acts in splits.items():
                there = torch.rand(len(acts), generator=generator) < 0.5
                where = torch.randint(PLACES, (len(acts),), generator=generator)
                acts[torch.arange(len(acts))[there], 0, where[there]] += 3
                labels[split] = (there if question == "anywhere" else there & (where == 2)).long()[:, None]
            flat = {split: acts.flatten(1) for split, acts in splits.items()}
            std, mean = torch.std_mean(flat["training"], 0)
            features = {split: (values - mean) / std for split, values in flat.items()}
            wide = {split: pad(values, (0, CHANNELS)) for split, values in features.items()}
            basis = shared_over_positions(wide, std, CHANNELS, sharing) if sharing else plain(features)
            losses = {split: ClassLoss(labels[split], [2]) for split in splits}
            fit = fit_path(
                basis.features["training"], losses["training"], basis.features["validation"], losses["validation"],
                (1.0, 0.1, 0.01, 1e-3, 1e-4), 25_000,
            )  # fmt: skip
            answers = (features["test"] @ basis.read_back(fit.weight).T + fit.bias).argmax(1)
            scores[sharing, question] = (answers == labels["test"][:, 0]).float().mean().item()
    assert scores[10, "anywhere"] > scores[0, "anywhere"] + 0.02
    assert scores[10, "place"] > scores[0, "place"] - 0.005
