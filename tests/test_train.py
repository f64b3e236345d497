"""The command line: run folders, one message for a mistake, and going on after an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import train
from networks import precision
from runs import start_run

TESTS = Path(__file__).parent
SHIPPED = str(TESTS.parent / "pretrained/heist_easy_customcnn_seed0.safetensors")  # weights alone
TINY = """
seed_everything: 0
trainer:
  max_steps: 6
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args: {save_last: true, every_n_train_steps: 2, save_top_k: 0}
model:
  class_path: tiny_training.TinyModule
  init_args: {width: "${data.init_args.width}"}
data:
  class_path: tiny_training.TinyData
  init_args:
    width: 4
    settings: {game: maze}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a tiny run; the working directory is an empty folder."""
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path("tiny.yaml").write_text(TINY)
    return ["--config", "tiny.yaml"]


def read_summary(folder: Path) -> dict[str, float]:
    return json.loads((folder / "summary.json").read_text())


def unfinish(folder: Path) -> None:
    """Make a run look as if it had been killed before its end."""
    (folder / "summary.json").unlink()


def test_a_run_owns_a_folder_and_ends_with_a_summary(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(tiny) == 0
    folder = Path("runs/tiny/version_0")
    assert {path.name.split(".")[0] for path in folder.iterdir()} >= {"config", "summary", "checkpoints", "events"}
    summary = read_summary(folder)
    assert summary["tiny/steps"] == 6
    assert summary["tiny/loss_high"] == 9.0
    printed = capsys.readouterr().out
    assert "tiny/loss" in printed
    assert "0 to 9" in printed
    assert f"tensorboard --logdir {folder}" in printed

    assert train.main(["--config", str(folder / "config.yaml")]) == 0, "a saved configuration runs again"
    assert read_summary(Path("runs/tiny/version_1")) == summary, "and gives the same"


def test_imitated_bfloat16_is_told_of(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_PROCESSOR", Path("absent"))
    precision.warn_of_slow_bf16.cache_clear()
    with pytest.warns(UserWarning, match="--trainer.precision 32-true is faster here"):
        assert train.main([*tiny, "--trainer.precision", "bf16-mixed", "--trainer.max_steps", "2"]) == 0
    precision.warn_of_slow_bf16.cache_clear()


def test_name_and_root_of_the_run_can_be_chosen(tiny: list[str]) -> None:
    assert train.main([*tiny, "--name", "mine", "--trainer.default_root_dir", "elsewhere"]) == 0
    assert Path("elsewhere/mine/version_0/summary.json").exists()
    assert not Path("runs").exists()


def test_further_loggers_keep_the_runs_own_folder_first(tiny: list[str]) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "csv"}}
    assert train.main([*tiny, "--trainer.logger", json.dumps([logger])]) == 0
    assert Path("csv").exists()
    assert list(Path("runs/tiny/version_0").glob("events*"))
    assert train.main([*tiny, "--trainer.logger", "false"]) == 0
    assert not list(Path("runs/tiny/version_1").glob("events*"))
    assert Path("runs/tiny/version_1/summary.json").exists()


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["--model.init_args.wdth", "4"], ["model.init_args.wdth", "did you mean width?"]),
        (["--data.init_args.settings.gmae", "x"], ["data.init_args.settings.gmae", "did you mean settings.game?"]),
        (["--data.init_args.settings.num_thread", "3"], ["settings.num_thread", "settings.num_threads?"]),
        (["--trainer.max_step", "3"], ["trainer.max_step", "did you mean trainer.max_steps?"]),
        (["--ckpt_pth", "auto"], ["ckpt_pth", "did you mean ckpt_path?"]),
        (["--model.class_path", "tiny_training.TinyModul"], ["model.class_path", "did you mean TinyModule?"]),
        (["--model.init_args.lr", "fast"], ["model.init_args.lr", "float", "fast"]),
        (["--model", "3"], ["model", "3"]),
        (["--config", "nowhere.yaml"], ["--config: there is no file nowhere.yaml"]),
        (["--config", "tinny.yaml"], ["there is no file tinny.yaml; did you mean tiny.yaml?"]),
        (["--config", "."], ["--config: . is a folder"]),
        (["--trainer.precision", "17"], ["trainer.precision", "'bf16-mixed'", "Got value: 17"]),
        (["--trainer.max_epochs", ""], ["trainer.max_epochs: Expected a <class 'int'>. Got value: "]),
        (["--trainer.max_epochs", "1.5"], ["trainer.max_epochs: Expected a <class 'int'>. Got value: 1.5"]),
        (["--trainer.callbacks", "callbacks.Throughputt"], ["callbacks has no class Throughputt", "Throughput?"]),
        (["--trainer.callbacks", "nowhere.Throughput"], ["trainer.callbacks.class_path: there is no module nowhere"]),
        (["--model", "TinyModul"], ["model: there is no class TinyModul; give its whole path"]),
        (["--model", "tiny_training.TinyData"], ["subclass of LightningModule. Got value: tiny_training.TinyData"]),
        (["--model.help", "tiny_training.TinyModul"], ["--model.help: tiny_training has no class", "TinyModule?"]),
    ],
)
def test_wrong_key_is_one_message_before_any_work(
    tiny: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], expected: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main([*tiny, *wrong])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    for part in expected:
        assert part in said[0]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "wrong.yaml holds no settings"),
        (b"- a\n", "wrong.yaml holds no settings"),
        (b"model:\n\twidth: 3\n", "wrong.yaml, line 2: found character '\\t'"),
        (b"model:\n  a: 1\n b: 2\n", "wrong.yaml, line 3: "),
        (b"# caf\xe9\nmodel: {}\n", "wrong.yaml is no YAML file that can be read"),
        (b"trainer:\n  max_steps: 2\n  max_steps: 3\n", "wrong.yaml, line 3: max_steps stands in line 2 too"),
    ],
)
def test_a_file_without_clear_settings_is_named(
    tiny: list[str], capsys: pytest.CaptureFixture[str], text: bytes, expected: str
) -> None:
    Path("wrong.yaml").write_bytes(text)
    with pytest.raises(SystemExit, match="2"):
        train.main([*tiny, "--config", "wrong.yaml"])
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: --config: {expected}")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model.init_args.wdth", 4, ["model.init_args.wdth", "did you mean width?"]),
        ("model.wdth", 4, ["model", "init_args"]),
        ("data.init_args.settings.gmae", 4, ["data.init_args.settings.gmae", "did you mean settings.game?"]),
        ("trainer.max_step", 4, ["trainer.max_step", "did you mean trainer.max_steps?"]),
        ("modl", {"class_path": "x"}, ["modl.class_path", "did you mean model"]),
    ],
)
def test_wrong_key_in_a_file(
    tiny: list[str], capsys: pytest.CaptureFixture[str], path: str, value: object, expected: list[str]
) -> None:
    config = yaml.safe_load(TINY)
    *parents, last = path.split(".")
    branch = config
    for parent in parents:
        branch = branch[parent]
    branch[last] = value
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match="2"):
        train.main(tiny)
    said = capsys.readouterr().err
    assert all(part in said for part in expected), said


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["--seed_everything", "-1"], "--seed_everything -1: give 0 to 4294967295"),
        (["--ckpt_path", "nowhere.ckpt"], "--ckpt_path: there is no file nowhere.ckpt"),
        (["--ckpt_path", __file__], "test_train.py is no checkpoint, or was cut short"),
        (
            ["--ckpt_path", SHIPPED],
            "seed0.safetensors is no checkpoint, or was cut short, or holds weights alone, "
            "from which no run can go on: give a whole .ckpt file",
        ),
        (["--trainer.accelerator", "abacus"], "trainer: You selected an invalid accelerator name"),
        pytest.param(
            ["--trainer.accelerator", "gpu"],
            "trainer: No supported gpu backend found!; give --trainer.accelerator auto",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        (["--trainer.devices", "-3"], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        (["--trainer.devices", "two"], "trainer: `devices`"),
        (["--model.init_args.kind", "bad"], "bad is no kind; use plain"),
        (["--data.init_args.fails_in", "setup"], "set --data.init_args.agent"),
        (["--name", "${nowhere}"], "nowhere"),
    ],
)
def test_wrong_value_is_one_message_and_leaves_nothing(
    tiny: list[str], capsys: pytest.CaptureFixture[str], wrong: list[str], expected: str
) -> None:
    assert train.main([*tiny, *wrong]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    assert expected in said[0]
    assert not Path("runs").exists()


def test_ctrl_c_before_training_leaves_nothing(
    tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.LightningCLI.instantiate_trainer", interrupt)
    assert train.main(tiny) == 130
    assert "interrupted before any work" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_an_error_in_training_shows_where_it_was_and_keeps_the_run(tiny: list[str]) -> None:
    with pytest.raises(ValueError, match="a fault while training"):
        train.main([*tiny, "--data.init_args.fails_in", "training"])
    assert Path("runs/tiny/version_0/config.yaml").exists()
    assert not Path("runs/tiny/version_0/summary.json").exists()


def test_help_and_print_config(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    assert "--ckpt_path" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        train.main([*tiny, "--data.init_args.width", "3", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["width"] == 3, "overrides come first"


def test_auto_goes_on_in_the_newest_unfinished_run_of_the_same_configuration(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    auto = [*tiny, "--ckpt_path", "auto"]
    assert train.main(auto) == 0, "without a run to go on with, it starts one"
    first = Path("runs/tiny/version_0")
    unfinish(first)
    last = first / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["steps"] += 100
    checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"] -= 2
    for progress in ("total", "current"):
        for kind in ("ready", "completed"):
            loop = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
            loop["optimizer"]["step"][progress][kind] -= 2
    torch.save(checkpoint, last)

    assert train.main([*auto, "--model.init_args.lr", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "version_1 starts at step 0" in said, "another configuration is another run"
    assert "version_0 is unfinished but was set otherwise (model.init_args.lr was 0.01, is 0.5)" in said
    assert f"--ckpt_path {last} goes on" in said
    assert train.main(auto) == 0
    assert f"version_0 goes on from {last}" in capsys.readouterr().out
    assert read_summary(first)["tiny/steps"] == 108, "two more steps on top of the checkpoint's"
    assert train.main(auto) == 0
    assert "version_2 starts at step 0" in capsys.readouterr().out, "a finished run is left alone"


def test_auto_passes_over_a_checkpoint_cut_short(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(tiny) == 0
    folder = Path("runs/tiny/version_0")
    unfinish(folder)
    last = folder / "checkpoints/last.ckpt"
    (folder / "checkpoints/older.ckpt").write_bytes(last.read_bytes())
    time.sleep(0.01)
    last.write_bytes(last.read_bytes()[:500])
    assert train.main([*tiny, "--ckpt_path", "auto"]) == 0
    assert "older.ckpt" in capsys.readouterr().out


def test_auto_leaves_a_run_alone_that_another_process_is_busy_with(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(tiny) == 0
    folder = Path("runs/tiny/version_0")
    config = (folder / "config.yaml").read_text()
    unfinish(folder)
    busy = start_run(Path("runs"), "tiny", config)  # held as long as the object lives
    assert train.main([*tiny, "--ckpt_path", "auto"]) == 0
    assert "version_0 goes on" in capsys.readouterr().out
    assert train.main([*tiny, "--ckpt_path", "auto"]) == 0
    assert "version_2 starts" in capsys.readouterr().out
    assert busy.folder.name == "version_1"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_goes_on(
    tiny: list[str], capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    usual = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    Path("signal").write_text(str(int(number)))
    save = ["--trainer.callbacks.init_args.save_on_exception", "true"]
    try:
        assert train.main([*tiny, *save]) == code
    finally:
        signal.signal(signal.SIGINT, usual)  # Lightning ignores it from the first Ctrl-C on
    assert "--ckpt_path auto goes on" in capsys.readouterr().err
    assert not Path("runs/tiny/version_0/summary.json").exists()
    assert train.main([*tiny, *save, "--ckpt_path", "auto"]) == 0
    assert "version_0" in capsys.readouterr().out
    assert read_summary(Path("runs/tiny/version_0"))["tiny/steps"] == 6


def test_a_run_killed_while_training_goes_on(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    slow = [*tiny, "--ckpt_path", "auto", "--data.init_args.seconds_per_batch", "0.1", "--trainer.max_steps", "12"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(TESTS.parent / "train.py"), *slow], env=environment)
    checkpoint = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    deadline = time.monotonic() + 300
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not Path("runs/tiny/version_0/summary.json").exists()
    assert train.main(slow) == 0
    assert "version_0 goes on from" in capsys.readouterr().out
    assert read_summary(Path("runs/tiny/version_0"))["tiny/steps"] == 12
