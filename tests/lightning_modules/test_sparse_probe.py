import numpy as np
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression

from lightning_modules.sparse_probe import most_telling, sparse_scores


def data(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    features = torch.randn(rows, 8, generator=generator)
    features[:, 5] += 2.0 * (labels == 1)
    features[:, 2] += 1.5 * (labels == 2)
    features[:, 7] = 0.0
    labels[::10] = -1
    return features, labels


def test_units_are_ranked_as_by_scikit_learn() -> None:
    features, labels = data(2_000, 0)
    known = labels >= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic, _ = f_classif(features[known, :7].numpy(), labels[known].numpy())
    order = most_telling(features, labels, 3).tolist()
    assert order[:2] == [5, 2]
    assert order[-1] == 7
    assert order[:7] == np.argsort(-statistic).tolist()


def test_scores_are_those_of_scikit_learn_on_the_same_units() -> None:
    splits = {name: data(2_000, seed) for seed, name in enumerate(("training", "validation", "test"))}
    found = sparse_scores(splits, torch.arange(2_000) // 5, 3, (1, 2))
    for k, units in ((1, [5]), (2, [5, 2])):
        (x, y), (test_x, test_y) = splits["training"], splits["test"]
        peer = LogisticRegression(C=1.0).fit(x[y >= 0][:, units], y[y >= 0])
        expected = (peer.predict(test_x[test_y >= 0][:, units]) == test_y[test_y >= 0].numpy()).mean()
        assert abs(found[k].compute()["accuracy"].value - expected) < 1e-2  # the penalty is another
    assert found[2].compute()["accuracy"].value > found[1].compute()["accuracy"].value
