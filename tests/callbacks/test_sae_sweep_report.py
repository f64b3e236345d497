import csv
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import SAEExport, SAESweepReport, SpliceEvaluation
from lightning_modules import ConvSAE, SAESweep, SweepMember
from networks import SparseAutoencoder, TopKSAE, load_sae
from tests.sae_training import PlantedData, small_trainer


def test_every_member_becomes_a_file_a_row_and_a_point(tmp_path: Path) -> None:
    members = [
        SweepMember("relu", partial(SparseAutoencoder, sparsity_coefficient=0.3), 2),
        SweepMember("topk_{k}", TopKSAE, 2, resample_every=None, grid={"k": [2, 3]}),
    ]
    module, data = SAESweep(members, tap="planted", compile=False), PlantedData(size=2)
    logger = TensorBoardLogger(tmp_path, "run", 0)
    trainer = small_trainer(5, logger=logger, callbacks=[SAESweepReport()], limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    folder = tmp_path / "run/version_0"

    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["member"] for row in rows] == ["relu", "topk_2", "topk_3"]
    assert [row["k"] for row in rows] == ["", "2", "3"]
    acts = data.batch(1_000_000).activations["planted"]
    for row, kind in zip(rows, (SparseAutoencoder, TopKSAE, TopKSAE), strict=True):
        sae = load_sae(folder / f"saes/{row['member']}.safetensors")
        assert type(sae) is kind
        assert torch.equal(sae(acts), module.saes[row["member"]](acts))
        assert (sae.tap, sae.metadata["agent_hash"], sae.metadata["steps"]) == ("planted", "planted", 5)
        assert sae.metadata["training"]["learning_rate"] == 1e-2
        assert sae.metadata["batch_size"] == data.batch_size
        measured = float(trainer.callback_metrics[f"sae/{row['member']}/l0"])
        assert sae.metadata["metrics"]["sae/l0"] == float(row["l0"]) == pytest.approx(measured)
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    (image,) = events.Images("frontier")
    with Image.open(folder / "figures/frontier.png") as picture:
        assert picture.size == (image.width, image.height)


def test_seeds_of_the_same_settings_are_compared(tmp_path: Path) -> None:
    members = [
        SweepMember("relu_{seed}", SparseAutoencoder, 2, grid={"seed": [0, 1, 1_000_000]}),
        SweepMember("other", TopKSAE, 2, resample_every=None),
    ]
    module, data = SAESweep(members, tap="planted", compile=False), PlantedData(size=2)
    trainer = small_trainer(
        5, logger=TensorBoardLogger(tmp_path, "run", 0), callbacks=[SAESweepReport()], limit_val_batches=1.0
    )
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    rows = list(csv.DictReader((tmp_path / "run/version_0/sweep.csv").open()))
    fires = module.firing.frequency().split(16)
    directions = [F.normalize(sae.directions().flatten(1), dim=1) for sae in module.saes.values()]
    for index, row in enumerate(rows[:3]):
        own = directions[index][fires[index] >= 1e-3]
        best = [(own @ directions[other].T).amax(1).mean().item() for other in range(3) if other != index]
        assert float(row["seed_cosine"]) == pytest.approx(sum(best) / 2, abs=1e-5)
    assert rows[3]["seed_cosine"] == ""


def test_refuses_a_module_that_is_no_sweep() -> None:
    with pytest.raises(ValueError, match="SAESweepReport needs a sweep, and ConvSAE is none"):
        small_trainer(1, callbacks=[SAESweepReport()]).fit(ConvSAE("planted"), datamodule=PlantedData())


@pytest.mark.parametrize("callback", [SAEExport(), SpliceEvaluation(num_levels=1)])
def test_a_sweep_is_refused_by_what_needs_one_autoencoder(callback: Callback) -> None:
    module = SAESweep([SweepMember("one", SparseAutoencoder)], tap="planted", compile=False)
    with pytest.raises(
        ValueError, match=f"{type(callback).__name__} needs a module with one autoencoder, and SAESweep"
    ):
        small_trainer(1, callbacks=[callback]).fit(module, datamodule=PlantedData())
