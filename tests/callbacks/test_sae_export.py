from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import SAEExport
from lightning_modules import ConvSAE
from networks import CustomCNN, load_sae
from tests.sae_training import PlantedData, small_trainer


def test_what_is_written_is_what_was_trained(tmp_path: Path) -> None:
    module = ConvSAE("planted", expansion=2, compile=False)
    trainer = small_trainer(5, logger=CSVLogger(tmp_path, "run", 0), callbacks=[SAEExport()], limit_val_batches=1.0)
    data = PlantedData()
    trainer.fit(module, datamodule=data)
    path = tmp_path / "run/version_0/sae.safetensors"
    path.unlink()
    trainer.callback_metrics["splice/return_ratio"] = torch.tensor(0.5)
    trainer.callback_metrics["other/metric"] = torch.tensor(0.5)
    trainer.validate(module, datamodule=data, verbose=False)

    sae = load_sae(path)
    acts = data.sample(10, 0)
    assert torch.equal(sae(acts), module.sae(acts))
    known = sae.metadata
    assert (known["kind"], known["tap"], known["agent_hash"]) == ("SparseAutoencoder", "planted", "planted")
    assert known["normalisation"]["scale"] == pytest.approx(float(sae.scale))
    assert known["training"]["expansion"] == 2
    assert (known["steps"], known["batch_size"]) == (5, data.batch_size)
    measured = trainer.callback_metrics["sae/explained_variance"]
    assert known["metrics"]["sae/explained_variance"] == pytest.approx(float(measured))
    assert "other/metric" not in known["metrics"]
    with pytest.raises(ValueError, match="another agent"):
        load_sae(path, CustomCNN())
