from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interpretability.optimised_images import OptimisationSettings
from networks import BilinearImpala, save_weights
from studies import FeatureGroups
from tests.saved_subject import save_subject

SETTINGS = {
    "num_frames": 64,
    "groups": 3,
    "examples": 2,
    "optimisation": OptimisationSettings(steps=1, starts=2),
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_subject(tmp_path_factory.mktemp("groups"))


def study(known: dict[str, str], **changes: Any) -> FeatureGroups:
    return FeatureGroups(known["agent"], cache_dir=known["cache"], **{**SETTINGS, **changes})


@pytest.mark.parametrize("method", ["co_activity", "factors"])
@pytest.mark.parametrize("of", ["channels", "latents", "flat"])
def test_groups_of_every_kind_of_unit(known: dict[str, str], of: str, method: str) -> None:
    changes = {"channels": {"tap": "conv4a"}, "latents": {"sae": known["sae"]}, "flat": {"tap": "fc1"}}[of]
    report = study(known, method=method, **changes).run()
    assert 1 <= report.summary["groups/count"] <= 3
    assert report.summary["groups/count"] == len(report.tables["groups"].rows)
    if method == "co_activity" and report.summary["groups/count"] > 1:
        assert report.summary["groups/within"] > report.summary["groups/between"]
    assert isinstance(report.figures["groups"], Tensor)
    edges = report.tables["edges"].rows
    assert len(edges) == report.summary["groups/edges"]
    assert all(row[2] >= 0.3 for row in edges)
    assert len(report.figures["graph"].axes[0].lines) == len(edges)


def test_channels_that_fall_below_zero_are_grouped_by_their_activations(known: dict[str, str]) -> None:
    one = study(known, tap="conv4a.pre")
    report = one.run()
    rows = torch.cat([batch.activations["conv4a.pre"].double() for batch in one.data.val_dataloader()])
    pearson = np.corrcoef(rows.transpose(0, 1).flatten(1).numpy())
    edges = report.tables["edges"].rows
    assert len(edges) == (np.triu(pearson, 1) >= 0.3).sum()
    assert [row[2] for row in edges] == pytest.approx([pearson[row[0], row[1]] for row in edges], abs=1e-4)


def test_a_network_without_relus_is_not_sent_to_one(tmp_path: Path) -> None:
    save_weights(tmp_path / "agent.safetensors", BilinearImpala(), {})
    with pytest.raises(ValueError, match=r"conv4a has activations below 0.*: choose co_activity$"):
        FeatureGroups(str(tmp_path / "agent.safetensors"), tap="conv4a", method="factors")


def test_what_cannot_be_meant_is_refused(known: dict[str, str]) -> None:
    for changes, match in [
        ({}, "give tap, or sae"),
        ({"tap": "conv9"}, "no tap 'conv9'"),
        ({"tap": "conv3a", "sae": known["sae"]}, "leave tap null"),
        ({"tap": "conv4a", "groups": 0}, "at least 1"),
        ({"tap": "conv4a", "edge": 1.5}, "edge is 1.5"),
        ({"tap": "conv4a.pre", "method": "factors"}, "conv4a.pre has activations below 0.*co_activity"),
    ]:
        with pytest.raises(ValueError, match=match):
            study(known, **changes)
