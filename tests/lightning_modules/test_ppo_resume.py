"""A run of PPO that was killed or stopped goes on bit for bit, or says why it cannot."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import train

ROOT = Path(__file__).parents[2]
EPOCHS = 4


def configuration(compile: bool) -> dict:
    """configs/ppo_impala.yaml made small: one batch size throughout, so that there is one compilation."""
    values = yaml.safe_load((ROOT / "configs/ppo_impala.yaml").read_text())
    values["trainer"] |= {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    for callback in values["trainer"]["callbacks"]:
        if "ModelCheckpoint" in callback["class_path"]:
            callback["init_args"]["every_n_epochs"] = 2
        if "HeldOutPlay" in callback["class_path"]:
            callback["init_args"] = {"num_levels": 2, "num_environments": 2, "max_steps": 4}
    callbacks = values["trainer"]["callbacks"]
    if compile:  # held-out play has a batch size of its own; `Between` validates, too
        callbacks = [callback for callback in callbacks if "HeldOutPlay" not in callback["class_path"]]
    values["trainer"]["callbacks"] = [*callbacks, {"class_path": "ppo_resume.Between"}]
    values["model"]["init_args"]["compile"] = compile
    values["data"]["init_args"] |= {"num_environments": 4, "num_steps": 8, "num_epochs": 1, "num_minibatches": 8}
    return values


def prepare(folder: Path, patch: pytest.MonkeyPatch, compile: bool) -> None:
    patch.chdir(folder)
    patch.syspath_prepend(str(ROOT / "tests"))
    patch.setattr(sys, "argv", ["train.py"])
    (folder / "run.yaml").write_text(yaml.safe_dump(configuration(compile)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run without compilation that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        prepare(folder, patch, compile=False)
        assert train.main(["--config", "run.yaml", "--name", "whole"]) == 0
    return folder / last("whole")


@pytest.fixture
def eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run without compilation."""
    prepare(tmp_path, monkeypatch, compile=False)
    return ["--config", "run.yaml", "--ckpt_path", "auto"]


def last(name: str) -> Path:
    return Path(f"runs/{name}/version_0/checkpoints/last.ckpt")


def checkpoint(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def differences(one, other, path=""):
    """Where two checkpoints differ; tensors bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [name for key in one for name in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            name for i, pair in enumerate(zip(one, other, strict=True)) for name in differences(*pair, f"{path}.{i}")
        ]
    equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if equal else [path]


def assert_same_training(one: dict, other: dict):
    for state in (one, other):
        assert state["epoch"] == EPOCHS - 1
    keys = ("state_dict", "optimizer_states", "RolloutDataModule", "global_step", "settings")
    assert differences({key: one[key] for key in keys}, {key: other[key] for key in keys}) == []
    drawn = [state["callbacks"]["Between"]["drawn"] for state in (one, other)]
    assert len(drawn[0]) == EPOCHS
    assert drawn[0] == drawn[1]


def in_a_process(arguments: list[str], threads: int) -> int:
    """Run train.py alone; what it leaves behind is compiled once for all."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # where other tests take the cores, two threads would spin for each other
        "PYTHONPATH": str(ROOT / "tests"),
        "TORCHINDUCTOR_CACHE_DIR": str(Path.cwd() / "compiled"),
    }
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *arguments], env=environment).returncode


def kill_and_go_on(run: Callable[[], int], go_on: Callable[[], int], capfd: pytest.CaptureFixture) -> None:
    Path("signal").write_text(f"2 {int(signal.SIGKILL)}")
    assert run() == -signal.SIGKILL
    assert checkpoint(last("killed"))["epoch"] == 1
    capfd.readouterr()
    assert go_on() == 0
    assert "version_0 goes on from" in capfd.readouterr().out


def test_a_killed_process_goes_on_bit_for_bit(eager, whole, capfd):
    arguments = [*eager, "--name", "killed"]
    kill_and_go_on(lambda: in_a_process(arguments, torch.get_num_threads()), lambda: train.main(arguments), capfd)
    assert_same_training(checkpoint(whole), checkpoint(last("killed")))


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit_compiled_on_two_threads(tmp_path, monkeypatch, capfd):
    prepare(tmp_path, monkeypatch, compile=True)

    def run(name: str) -> int:
        return in_a_process(["--config", "run.yaml", "--ckpt_path", "auto", "--name", name], threads=2)

    assert run("whole") == 0
    kill_and_go_on(lambda: run("killed"), lambda: run("killed"), capfd)
    assert_same_training(checkpoint(last("whole")), checkpoint(last("killed")))


def test_sigterm_finishes_the_rollout_and_saves_it(eager, whole, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    Path("signal").write_text(f"2 {int(signal.SIGTERM)}")
    assert train.main([*eager, "--name", "stopped"]) == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert "--ckpt_path auto goes on" in capsys.readouterr().err
    stopped = checkpoint(last("stopped"))
    assert stopped["epoch"] == 2, "no epoch that ModelCheckpoint alone would have saved"
    assert stopped["global_step"] == 3 * 8, "the whole rollout"
    assert train.main([*eager, "--name", "stopped"]) == 0
    assert_same_training(checkpoint(whole), checkpoint(last("stopped")))


def test_another_configuration_is_refused_or_told(eager, whole, capsys):
    shutil.copy(whole, "last.ckpt")
    arguments = [*eager[:2], "--name", "run", "--ckpt_path", "last.ckpt"]

    def refused(*changes: str) -> str:
        capsys.readouterr()
        assert train.main([*arguments, *changes]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        return said[0]

    data, model = "--data.init_args", "--model.init_args"
    said = refused(f"{data}.environment.distribution_mode", "hard", f"{data}.discount", "0.9", f"{model}.clip", "0.3")
    assert "environment.distribution_mode 'easy' there, 'hard' here" in said
    assert "discount 0.999 there, 0.9 here" in said
    assert "clip" not in said, "which may change"
    assert "num_environments 4 there, 8 here" in refused(f"{data}.num_environments", "8")
    assert "seed 0 there, 1 here" in refused(f"{data}.seed", "1")
    said = refused(f"{model}.agent.init_args.initialise_centred", "false")
    assert "agent.initialise_centred True there, False here" in said
    foreign = torch.load("last.ckpt", weights_only=True)
    del foreign["RolloutDataModule"]
    torch.save(foreign, "last.ckpt")
    assert "warm_start" in refused()


def test_what_may_change_is_told_and_takes_effect(eager, whole, caplog):
    changes = ["--trainer.max_epochs", "6", "--model.init_args.learning_rate", "0.001", "--data.init_args.num_steps"]
    with caplog.at_level("INFO"):
        assert train.main([*eager[:2], "--name", "other", "--ckpt_path", str(whole), *changes, "16"]) == 0
    told = [record.getMessage() for record in caplog.records if "have changed" in record.getMessage()]
    assert len(told) == 1
    assert "learning_rate 0.0005 there, 0.001 here" in told[0]
    assert "num_steps 8 there, 16 here" in told[0]
    assert "seed" not in told[0]
    after = checkpoint(last("other"))
    assert after["epoch"] == 5
    assert after["optimizer_states"][0]["param_groups"][0]["lr"] == 0.001
    assert after["RolloutDataModule"]["env_steps"] == 4 * 4 * 8 + 2 * 4 * 16
