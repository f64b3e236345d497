from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from callbacks import ProbeExport, ProbeFigures, probe_figures
from interpretability import ProbeResult
from lightning_modules import LinearProbe
from networks import CustomCNN, DecisionTransformer, LinearReadout, TappedNetwork, load_readout
from networks.linear_readout import Form, reduced_shape
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


def test_a_picture_that_cannot_be_written_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    monkeypatch.setattr(ProbeFigures, "figures", lambda self, results, data: {"map": Figure()})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/map.png").write_bytes(b"whole")
    data, module = SimpleNamespace(data_name="natural"), SimpleNamespace(results=[])
    trainer: Any = SimpleNamespace(log_dir=str(tmp_path), datamodule=data, loggers=[])
    with pytest.raises(OSError, match="disk is full"):
        ProbeFigures().on_test_end(trainer, module)  # type: ignore[arg-type]
    assert (tmp_path / "figures/map.png").read_bytes() == b"whole"
    assert len(list((tmp_path / "figures").iterdir())) == 1


def test_a_module_without_results_is_refused() -> None:
    with pytest.raises(ValueError, match="take it out"):
        ProbeFigures().on_fit_start(Trainer(logger=False, accelerator="cpu"), LightningModule())


class Fitted(LightningModule):
    """Readouts of taps of a real network, with directions drawn at random, and results as a test leaves them."""

    def __init__(self, agent: CustomCNN, losses: dict[tuple[Form, str, str], float]) -> None:
        super().__init__()
        self.readouts, self.results = {}, []
        classes = {"target": ("blue_key", "gem"), "path_length": ("moves",), "player": ("elsewhere", "here")}
        for (form, target, tap), loss in losses.items():
            names = classes[target]
            shape = agent.taps[tap]
            readout = LinearReadout(tap, form, shape, reduced_shape(shape, 2_048), {target: names}, [target])
            nn.init.normal_(readout.weight)
            self.readouts[tap, form] = readout
            best = loss == min(each for key, each in losses.items() if key[:2] == (form, target))
            self.results.append(ProbeResult(form, target, tap, {}, {}, None, names, loss, best))

    def readout(self, tap: str, form: Form) -> LinearReadout:
        return self.readouts[tap, form]


def drawn(monkeypatch: pytest.MonkeyPatch, module: LightningModule, agent: TappedNetwork) -> dict[str, Any]:
    """Name -> the tap that is read from, and the title."""
    monkeypatch.setattr(probe_figures, "draw_written_by", lambda found, title: (found[0].source, title))
    return ProbeFigures().inputs(agent, module)


def test_what_is_written_is_drawn_at_the_best_tap_behind_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = CustomCNN()
    losses: dict[tuple[Form, str, str], float] = {
        ("flat", "target", "conv2a"): 0.4,
        ("flat", "target", "pool4"): 0.1,  # best, but a pool
        ("flat", "target", "fc1"): 0.2,
        ("flat", "path_length", "fc2"): 0.1,  # none of those that are drawn
        ("position", "player", "conv4a"): 0.1,
    }
    found = drawn(monkeypatch, Fitted(agent, losses), agent)
    assert found == {
        "inputs_target_blue_key": ("pool4", "target: blue key, at fc1, the best tap behind weights"),
        "inputs_target_gem": ("pool4", "target: gem, at fc1, the best tap behind weights"),
        "inputs_player": ("pool3", "player: here, at conv4a, the best tap"),
    }


def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    agent = CustomCNN()
    with caplog.at_level("INFO"):
        assert drawn(monkeypatch, Fitted(agent, {("position", "player", "pool3"): 0.1}), agent) == {}
    assert "player, here, is not drawn" in caplog.text
    transformer = DecisionTransformer(width=16, depth=1, heads=2, context=4)
    with caplog.at_level("INFO"):
        assert drawn(monkeypatch, Fitted(agent, {("flat", "target", "fc1"): 0.1}), transformer) == {}
    assert "DecisionTransformer reads more than one frame" in caplog.text
