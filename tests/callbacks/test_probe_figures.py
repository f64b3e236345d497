from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ProbeExport, ProbeFigures
from lightning_modules import LinearProbe
from networks import LinearReadout, load_readout
from tests.probe_training import PlantedProbes


def test_figures_images_and_readouts_of_a_run(tmp_path: Path) -> None:
    module, data = LinearProbe(["next_direction", "path_length"], ("flat",), shuffled=False), PlantedProbes()
    logger = TensorBoardLogger(tmp_path, "run")
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, callbacks=[ProbeFigures(), ProbeExport()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    folder = Path(logger.log_dir)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "heat_map_natural_flat.png",
        "confusion_natural_flat_next_direction.png",
    }
    logger.experiment.flush()
    events = EventAccumulator(str(folder)).Reload()
    assert "probe/confusion_natural_flat_next_direction" in events.Tags()["images"]
    assert "probe/natural/flat/next_direction/map/accuracy" in events.Tags()["scalars"]
    assert {path.name for path in (folder / "probes").iterdir()} == {"flat_map.safetensors", "flat_noise.safetensors"}
    readout = load_readout(folder / "probes/flat_map.safetensors", data.agent)
    assert isinstance(readout, LinearReadout)
    acts = data.examples("agent", ("test",))["map"]["test"].activations
    assert (readout(acts) - module.readout("map")(acts)).abs().max() == 0


def test_a_module_without_results_is_refused() -> None:
    with pytest.raises(ValueError, match="take it out"):
        ProbeFigures().on_fit_start(Trainer(logger=False, accelerator="cpu"), LightningModule())
