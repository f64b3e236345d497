from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules import BehaviourCloning, ConvSAE
from lightning_modules.rate_schedule import scheduled
from tests.sae_training import PlantedData, small_trainer


def rates(made: dict[str, Any], steps: int) -> list[list[float]]:
    """Of each group, at each of so many steps."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in made["optimizer"].param_groups])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return found


def make(first: float, second: float, steps: int = 10, decays: tuple[float, float] = (0.0, 0.0)) -> dict[str, Any]:
    groups = [
        {"params": [torch.zeros(2)], "lr": rate, "weight_decay": decay}
        for rate, decay in zip((first, second), decays, strict=True)
    ]
    return scheduled(torch.optim.Adam(groups), lambda step: 1 - step / steps)


def go_on(made: dict[str, Any], saved: dict[str, Any]) -> None:
    """As Lightning does."""
    made["optimizer"].load_state_dict(saved["optimizer"].state_dict())
    made["lr_scheduler"]["scheduler"].load_state_dict(saved["lr_scheduler"]["scheduler"].state_dict())


def test_a_resumed_run_has_the_rates_and_the_length_that_are_configured_now() -> None:
    whole, saved = rates(make(1.0, 0.1), 10), make(1.0, 0.1)
    assert whole[3] == [0.7, pytest.approx(0.07)]
    rates(saved, 4)
    same, other = make(1.0, 0.1), make(0.5, 0.2, steps=20)
    go_on(same, saved)
    go_on(other, saved)
    assert rates(same, 6) == whole[4:], "bit for bit"
    assert rates(other, 2) == [[pytest.approx(0.4), pytest.approx(0.16)], [pytest.approx(0.375), pytest.approx(0.15)]]


def test_a_resumed_run_has_the_weight_decays_that_are_configured_now() -> None:
    saved, other = make(1.0, 0.1, decays=(0.1, 0.0)), make(1.0, 0.1, decays=(0.3, 0.2))
    rates(saved, 2)
    go_on(other, saved)
    assert [group["weight_decay"] for group in other["optimizer"].param_groups] == [0.3, 0.2]


def test_cloning_that_goes_on_for_longer_falls_to_nothing_once() -> None:
    found = []
    for steps in (10, 20):
        module = BehaviourCloning(learning_rate=1.0, compile=False)
        module._trainer = SimpleNamespace(estimated_stepping_batches=steps)
        found.append(module.configure_optimizers())
    first = [rate for (rate,) in rates(found[0], 10)]
    assert first[5] == pytest.approx(0.5)
    go_on(found[1], found[0])
    second = [rate for (rate,) in rates(found[1], 10)]
    assert second[0] == pytest.approx(0.5)
    assert second == sorted(second, reverse=True)
    assert second[-1] < 0.01


def test_an_autoencoder_goes_on_with_a_lower_rate(tmp_path: Path) -> None:
    """As the message says that ends a run whose loss is not finite."""

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    def module(rate: float) -> ConvSAE:
        return ConvSAE("planted", expansion=2, learning_rate=rate, warmup_steps=1, decay_fraction=0, compile=False)

    seen: list[float] = []
    trainer = small_trainer(3, callbacks=[Rates()])
    trainer.fit(module(1e-2), datamodule=PlantedData())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = small_trainer(5, callbacks=[Rates()])
    again.fit(module(1e-4), datamodule=PlantedData(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert seen == pytest.approx([1e-2] * 3 + [1e-4] * 2)
