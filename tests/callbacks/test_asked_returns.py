"""The callback plays what it says it plays, where it says, and draws it."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import AskedReturns
from environments import EnvironmentSettings
from interpretability.asked_play import play_asked
from lightning_modules import BehaviourCloning, DecisionTransformer
from networks import DecisionTransformer as Network
from tests.trajectory_training import PlantedData, small_network

FEW = {"num_levels": 3, "num_environments": 3, "max_steps": 5, "asked": [0.0, 10.0], "replayed": 2, "filmed": 1}


def fit(tmp_path, callback, network, **arguments) -> Trainer:
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=TensorBoardLogger(tmp_path, "dt", "run"), callbacks=[callback],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(DecisionTransformer(network, compile=False), datamodule=PlantedData(steps=2, **arguments))
    return trainer


def test_it_plays_before_epochs_and_at_the_end_and_draws(tmp_path):
    torch.manual_seed(0)
    network, callback = small_network(), AskedReturns(every_n_epochs=1, **FEW)
    start = torch.get_rng_state()
    trainer = fit(tmp_path, callback, network)
    end = torch.get_rng_state()
    torch.set_rng_state(start)
    fit(tmp_path / "once_more", Callback(), network)
    assert torch.equal(end, torch.get_rng_state()), "play draws from its own generators"
    events = EventAccumulator(str(tmp_path / "dt/run"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("dt/rtg_0/solved")] == [2, 4]
    expected = play_asked(
        network, [10.0, 0.0], range(3), settings=EnvironmentSettings(), num_environments=3, max_steps=5,
        precision="fp32",
    )  # fmt: skip
    found = {name: float(trainer.callback_metrics[name]) for name in expected.metrics()}
    assert found == pytest.approx(expected.metrics())
    assert found["dt/episode_length"] == found["dt/rtg_10/episode_length"] == 5
    assert found["dt/rtg_0/solved_high"] > found["dt/rtg_0/solved"] == 0
    assert {"dt/confusion", "dt/attention", "dt/asked_returns", "dt/play"} <= set(events.Tags()["images"])
    figures = tmp_path / "dt/run/figures"
    assert {path.name for path in figures.iterdir()} == {
        "confusion.png", "attention.png", "asked_returns.png", "play.gif"
    }  # fmt: skip
    assert Image.open(figures / "play.gif").n_frames >= 5


def test_a_picture_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    def fail(figure, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    last = tmp_path / "dt/run/figures/confusion.png"
    last.parent.mkdir(parents=True)
    last.write_bytes(b"whole")
    with pytest.raises(OSError, match="disk is full"):
        fit(tmp_path, AskedReturns(every_n_epochs=1, **FEW), small_network())
    assert last.read_bytes() == b"whole"
    assert list(last.parent.iterdir()) == [last]


def test_a_network_that_is_not_told_plays_once(tmp_path):
    torch.manual_seed(0)
    cloning = Network(width=16, depth=1, heads=2, context=1, tokens=["observation"], encoder_tap="fc2")
    trainer = fit(tmp_path, AskedReturns(every_n_epochs=5, **FEW), cloning.requires_grad_(True), context=1)
    assert "dt/solved" in trainer.callback_metrics
    assert not any(name.startswith("dt/rtg_") for name in trainer.callback_metrics)


def test_what_cannot_be_played_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every_n_epochs is 0"):
        AskedReturns(every_n_epochs=0)
    for asked in ([100.0], []):
        with pytest.raises(ValueError, match="asked"):
            AskedReturns(asked=asked)
    with pytest.raises(ValueError, match="BehaviourCloning trains none"):
        AskedReturns().setup(Trainer(logger=False), BehaviourCloning(compile=False), "fit")
