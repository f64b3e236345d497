from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import DeadNeurons
from lightning_modules import ConvSAE
from tests.sae_training import PlantedData, small_trainer


def small_module(window: int = 1000) -> ConvSAE:
    return ConvSAE("planted", expansion=2, dead_window=window, resample_every=None, warmup_steps=5, compile=False)


def test_logs_what_the_counter_says(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "run", 0)
    module = small_module()
    trainer = small_trainer(24, logger=logger, callbacks=[DeadNeurons(every_n_steps=4)], log_every_n_steps=4)

    def silence(*_: object) -> None:  # two latents never fire again
        with torch.no_grad():
            module.sae.encoder_bias[:2] = -100

    trainer.fit_loop.setup_data = _after(trainer.fit_loop.setup_data, silence)  # type: ignore[method-assign]
    trainer.fit(module, datamodule=PlantedData())
    assert trainer.callback_metrics["sae/dead_fraction"] == module.firing.dead().float().mean() >= 2 / 16

    events = EventAccumulator(str(tmp_path / "run/version_0"), size_guidance={"histograms": 0})
    events.Reload()
    first, *_, last = events.Histograms("sae/log10_firing_frequency")
    assert (first.step, last.step) == (4, 24)
    assert last.histogram_value.num == 16
    frequency = module.firing.frequency()
    assert frequency[:2].sum() == 0
    inputs = float(module.firing.inputs + module.firing.last_inputs)
    assert last.histogram_value.min == pytest.approx(torch.tensor(0.1 / inputs).log10().item(), abs=1e-3)
    assert last.histogram_value.max == pytest.approx(frequency.max().log10().item(), abs=1e-3)
    # nothing can be called dead before the window is full: 4 steps of 256 inputs
    dead = events.Scalars("sae/dead_fraction")
    assert dead[0].step == 3
    assert len(dead) == 6


def _after(first, then):  # type: ignore[no-untyped-def]
    def both(*arguments, **named):  # type: ignore[no-untyped-def]
        result = first(*arguments, **named)
        then()
        return result

    return both


def test_looks_once_a_step_that_has_several_batches(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "run", 0)
    trainer = small_trainer(
        8, logger=logger, callbacks=[DeadNeurons(every_n_steps=3)], log_every_n_steps=4, accumulate_grad_batches=3
    )
    trainer.fit(small_module(), datamodule=PlantedData())
    events = EventAccumulator(str(tmp_path / "run/version_0"), size_guidance={"histograms": 0})
    events.Reload()
    assert [event.step for event in events.Histograms("sae/log10_firing_frequency")] == [3, 6, 8]
    assert [event.step for event in events.Scalars("sae/loss")] == [3, 7]


def test_says_nothing_before_the_window_is_full() -> None:
    trainer = small_trainer(8, callbacks=[DeadNeurons(every_n_steps=2)])
    trainer.fit(small_module(window=256 * 9), datamodule=PlantedData())
    assert "sae/dead_fraction" not in trainer.callback_metrics


def test_changes_no_weight() -> None:
    with_callback, without = small_module(), small_module()
    torch.manual_seed(1)
    small_trainer(10, callbacks=[DeadNeurons(every_n_steps=1)]).fit(with_callback, datamodule=PlantedData())
    torch.manual_seed(1)
    small_trainer(10).fit(without, datamodule=PlantedData())
    for name, tensor in without.state_dict().items():
        assert torch.equal(tensor, with_callback.state_dict()[name]), name


def test_goes_on_counting_after_a_resume(tmp_path: Path) -> None:
    """Five steps, a checkpoint, five more: the window of eight steps spans both."""
    trainer = small_trainer(5, callbacks=[DeadNeurons(every_n_steps=1)])
    trainer.fit(small_module(window=8 * 256), datamodule=PlantedData())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert "sae/dead_fraction" not in trainer.callback_metrics
    module = small_module(window=8 * 256)
    trainer = small_trainer(10, callbacks=[DeadNeurons(every_n_steps=1)])
    trainer.fit(module, datamodule=PlantedData(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert module.firing.seen == 10 * 256
    assert trainer.callback_metrics["sae/dead_fraction"] == module.firing.dead().float().mean()


def test_refuses_a_module_without_a_counter() -> None:
    with pytest.raises(ValueError, match=r"take it out of trainer\.callbacks"):
        DeadNeurons().on_fit_start(small_trainer(1), LightningModule())
    with pytest.raises(ValueError, match="every_n_steps"):
        DeadNeurons(0)
