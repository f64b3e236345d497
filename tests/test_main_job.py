"""The main job through train.py: what it takes, what it refuses and how, what it survives."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import train
from networks import BatchTopKSAE, CustomCNN, load_agent, load_sae
from tests.small_configs import ROOT, shrink

SAE = ROOT / "configs/sae_conv4.yaml"


def test_the_main_job_streams_with_one_override(workplace: Path) -> None:
    assert train.main([*shrink(SAE), "--data.init_args.source", "stream"]) == 0
    assert not list(Path("cache").glob("**/training*/*.safetensors"))


def error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one message with which a run stops; nothing is left of it."""
    capsys.readouterr()
    assert train.main(arguments) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert not list(Path("runs").glob("sae_conv4/*/summary.json"))
    return said[0]


def test_a_misspelt_key_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main([*shrink(SAE), "--model.init_args.expnsion", "4"])
    assert "model.init_args.expnsion" in (said := capsys.readouterr().err)
    assert "did you mean expansion?" in said


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (["--model.init_args.sae.init_args.sparsity_coeficient", "1"], "did you mean sparsity_coefficient?"),
        (["--model.init_args.sae", "networks.TopKSA"], "did you mean TopKSAE?"),
        (["--model.init_args.sae", "networks.TopKSAE", "--model.init_args.sae.init_args.kk", "4"], "did you mean k?"),
        (
            ["--model.init_args.sae.init_args.sparsity_coefficient", "much"],
            "Expected a <class 'float'>. Got value: much\n",
        ),
        (["--model.init_args.sae.init_args.expansion", "8"], "there are: sparsity_coefficient"),
    ],
)
def test_a_misspelt_kind_or_argument_of_it_is_named(
    workplace: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main([*shrink(SAE), *wrong])
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert wrong[-2].removeprefix("--") in said
    assert expected in said


def test_the_kind_and_its_arguments_are_overridden(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command from the ReLU configuration to another kind; its saved configuration says so and runs again."""
    kind = ["--model.init_args.sae", "networks.BatchTopKSAE", "--model.init_args.sae.init_args.k", "3"]
    assert train.main([*shrink(SAE), *kind, "--model.init_args.expansion", "2"]) == 0
    saved = Path("runs/sae_conv4/version_0/config.yaml")
    model = yaml.safe_load(saved.read_text())["model"]["init_args"]
    assert model["sae"]["class_path"] == "networks.BatchTopKSAE"
    assert model["sae"]["init_args"]["k"] == 3
    sae = load_sae("runs/sae_conv4/version_0/sae.safetensors", load_agent("agent.safetensors"))
    assert isinstance(sae, BatchTopKSAE)
    assert (sae.k, sae.num_latents) == (3, 64)
    assert sae.threshold > 0
    assert train.main(["--config", str(saved)]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        train.main([*shrink(SAE), "--model.init_args.sae.init_args.rare_frequency", "null", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["sae"]["init_args"]
    assert printed["rare_frequency"] is None


def test_a_missing_agent_is_named(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = error([*shrink(SAE), "--data.init_args.agent", "nowhere.safetensors"], capsys)
    assert "nowhere.safetensors" in said
    assert "data.init_args.agent" in said


def test_an_impossible_argument_is_told_in_the_class_s_own_words(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error([*shrink(SAE), "--model.init_args.expansion", "0"], capsys)
    assert said.startswith("error: expansion")
    assert "Union" not in said
    assert "Namespace" not in said


def test_an_agent_with_other_channels_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = CustomCNN().state_dict()
    weights["conv4a.weight"], weights["conv4a.bias"] = torch.ones(16, 32, 5, 5), torch.ones(16)
    torch.save(weights, "other.pt")
    said = error([*shrink(SAE), "--data.init_args.agent", "other.pt"], capsys)
    assert "conv4a" in said
    assert "16" in said


def test_a_damaged_shard_is_never_used(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shrink(SAE)
    assert train.main(arguments) == 0
    shutil.rmtree("runs")
    shard = max(Path("cache").glob("**/*.safetensors"), key=lambda path: path.stat().st_size)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert str(shard) in error(arguments, capsys)
    shard.write_bytes(whole[:-8] + bytes(byte ^ 1 for byte in whole[-8:]))
    assert str(shard) in error(arguments, capsys)
    shard.unlink()
    assert train.main(arguments) == 0, "the mend that the message names"


def test_a_run_killed_while_recording_goes_on_from_whole_shards(workplace: Path) -> None:
    arguments = [*shrink(SAE), "--data.init_args.num_frames", "2048"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], env=environment)
    deadline = time.monotonic() + 300
    while len(whole := sorted(Path("cache").glob("**/shard-*.safetensors"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not list(Path("runs").glob("*/*/checkpoints/*"))
    first = {path: path.stat().st_mtime_ns for path in whole[:1]}
    assert train.main([*arguments, "--ckpt_path", "auto"]) == 0
    assert first == {path: path.stat().st_mtime_ns for path in whole[:1]}, "a whole shard is kept"
    assert len(list(Path("runs/sae_conv4").iterdir())) == 1, "the killed run's own folder"
