import csv
from pathlib import Path

import pytest
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import SAETables
from lightning_modules import ConvSAE
from networks import SparseAutoencoder
from tests.sae_training import PlantedData, small_trainer


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("size", [None, 3])
def test_writes_the_columns_of_the_last_validation(tmp_path: Path, size: int | None) -> None:
    module = ConvSAE("planted", expansion=2, compile=False, resample_every=None)
    logger = TensorBoardLogger(tmp_path, "run", 0)
    trainer = small_trainer(3, logger=logger, callbacks=[SAETables()], limit_val_batches=1.0)
    data = PlantedData(size=size, batch_size=64)
    trainer.fit(module, datamodule=data)
    sae = module.sae
    assert isinstance(sae, SparseAutoencoder)
    sae.encoder_bias.data[1] = -1e9  # never fires; the tables below are those of the second validation
    trainer.validate(module, datamodule=data, verbose=False)
    folder = tmp_path / "run/version_0"

    latents, channels = table(folder / "tables/latents.csv"), table(folder / "tables/channels.csv")
    assert [row["latent"] for row in latents] == [str(number) for number in range(16)]
    assert len(channels) == 8
    assert latents[1]["frequency"] == "0"
    assert latents[1]["mean_active"] == latents[1]["spread"] == ""
    frequencies = [float(row["frequency"]) for row in latents]
    assert sum(frequencies) == pytest.approx(float(trainer.callback_metrics["sae/l0"]), rel=1e-4)
    assert max(float(row["spread"] or 0) for row in latents) > 0 if size else True
    least = min(float(row["explained_variance"]) for row in channels)
    assert least == pytest.approx(float(trainer.callback_metrics["sae/explained_variance_least_channel"]), rel=1e-4)
    for name in ("latents", "channels"):
        assert Image.open(folder / f"figures/{name}.png").size[0] > 400
    events = EventAccumulator(str(folder)).Reload()
    assert {"sae/latents", "sae/channels"} <= set(events.Tags()["images"])
    assert not list(folder.glob("**/*.partial"))


def test_refuses_a_module_without_an_autoencoder() -> None:
    with pytest.raises(ValueError, match=r"take it out of trainer\.callbacks"):
        SAETables().setup(small_trainer(1), LightningModule(), "fit")
