"""What a run leaves as its last word."""

import copy
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import RunSummary
from callbacks.run_summary import summary_table, where_to_look


class Logs(LightningModule):
    """Logs one value while training, and one more in every validation that counts how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.validations = 0

    def training_step(self, batch: Tensor) -> Tensor:
        self.log("a/train", 2.0)
        return self.weight

    def validation_step(self, batch: Tensor) -> None:
        self.log("a/validations", float(self.validations))

    def on_validation_epoch_end(self) -> None:
        self.validations += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_collects_fit_and_the_validation_after_it(tmp_path: Path) -> None:
    summary, module, data = RunSummary(), Logs(), DataLoader(torch.ones(2, 1))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[summary],
    )
    assert not summary.started
    trainer.fit(module, data, data)
    assert summary.started
    assert summary.metrics == {"a/train": 2.0, "a/validations": 0.0}
    trainer.validate(module, data, verbose=False)
    assert summary.metrics == {"a/train": 2.0, "a/validations": 1.0}
    assert not list(tmp_path.iterdir()), "nothing is written before finish: its file marks a finished run"
    summary.metrics["b/undefined"] = float("nan")
    summary.finish(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "a/train": 2.0,
        "a/validations": 1.0,
        "b/undefined": None,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


class Tests(Logs):
    """Logs in a test of its own, and asks for a short table."""

    headline_metrics = "/best/"

    def test_step(self, batch: Tensor) -> None:
        self.log("b/best/score", 0.5)
        self.log("b/other/score", 0.25)


def test_collects_a_test_and_shows_its_headlines_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, module, data = RunSummary(), Tests(), DataLoader(torch.ones(2, 1))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[summary],
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert summary.metrics == {"a/train": 2.0, "b/best/score": 0.5, "b/other/score": 0.25}
    capsys.readouterr()
    summary.finish(tmp_path)
    shown = capsys.readouterr().out
    assert "b/best/score" in shown
    assert "b/other/score" not in shown
    assert json.loads((tmp_path / "summary.json").read_text())["b/other/score"] == 0.25


class Evaluates(Callback):
    """Measures something at the end of training, as evaluations do that take long."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callback_metrics["c/evaluated"] = torch.tensor(3.0)


@pytest.mark.parametrize("bars", [[], [TQDMProgressBar()]])
def test_a_run_killed_in_its_last_evaluation_makes_up_for_it(tmp_path: Path, bars: list[Callback]) -> None:
    def fit(summary: RunSummary, checkpoint: Path | None) -> Trainer:
        trainer = Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=bool(bars),
            enable_model_summary=False,
            callbacks=[*copy.deepcopy(bars), Evaluates(), summary],
        )
        trainer.fit(Logs(), DataLoader(torch.ones(2, 1)), ckpt_path=checkpoint)
        return trainer

    first, second = RunSummary(), RunSummary()
    fit(first, None).save_checkpoint(tmp_path / "last.ckpt")
    fit(second, tmp_path / "last.ckpt")
    assert first.metrics == {"a/train": 2.0, "c/evaluated": 3.0}
    assert second.metrics == {"c/evaluated": 3.0}


def test_intervals_share_a_row_with_their_metric() -> None:
    table = summary_table({"x": 1.0, "x_low": 0.5, "x_high": 1.5, "y_low": 3.0}, title="t")
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table)
    rows = [line for line in captured.get().splitlines() if line.startswith("│")]
    assert len(rows) == 2
    assert "0.5 to 1.5" in rows[0]
    assert "y_low" in rows[1], "a bound without its metric is a metric"


def test_points_at_what_is_there(tmp_path: Path) -> None:
    assert where_to_look(tmp_path) == [f"curves    tensorboard --logdir {tmp_path}"]
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "latents.png").touch()
    (tmp_path / "agent.safetensors").touch()
    assert [line.split()[0] for line in where_to_look(tmp_path)] == ["pictures", "curves", "weights"]
    assert "(1 files)" in where_to_look(tmp_path)[0]
