"""Every shipped configuration runs two steps through train.py, every study through analyse.py.

The main job also survives what it has to survive. Configurations are taken as they are, except that SHRUNK makes what
they configure small. A new class in a configuration that takes long needs its line there.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import analyse
import train
from networks import BatchTopKSAE, CustomCNN, DecisionTransformer, SparseAutoencoder, load_agent, load_sae, save_weights
from studies import Study

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))
SAE = ROOT / "configs/sae_conv4.yaml"

SHRUNK: dict[str, dict[str, Any]] = {
    "datamodules.ActivationDataModule": {
        "agent": "agent.safetensors",
        "num_frames": 192,
        "validation_frames": 64,
        "batch_size": 64,
        "positions_per_frame": 4,
        "play": {"environments": 4, "steps": 16, "random_start": 0},
        "cache_dir": "cache",
    },
    "datamodules.ImitationDataModule": {
        "num_environments": 4,
        "student_environments": 2,
        "steps_per_epoch": 4,
        "batch_size": 8,
        "student_from": 0,
    },
    "datamodules.ProbeDataModule": {
        "agent": "agent.safetensors",
        "taps": ["conv4a", "logits"],
        "num_frames": 64,
        "validation_frames": 32,
        "test_frames": 32,
        "max_features": 128,
        "play": {"environments": 4, "steps": 8, "random_start": 0},
        "cache_dir": "cache",
    },
    "datamodules.TrajectoryDataModule": {
        "num_frames": 400,
        "validation_frames": 100,
        "batch_size": 4,
        "max_steps": 40,
        "cache_dir": "cache",
    },
    "datamodules.RolloutDataModule": {
        "num_environments": 4,
        "num_steps": 4,
        "num_epochs": 1,
        "num_minibatches": 2,
    },
    "callbacks.FeatureVisualisation": {
        "num_units": 2,
        "num_examples": 1,
        "num_frames": 8,
        "every_n_steps": 1,
        "evolving_units": 2,
        "evolving_steps": 1,
        "optimisation": {"steps": 2},
    },
    "callbacks.AskedReturns": {"num_levels": 2, "num_environments": 2, "max_steps": 4},
    "callbacks.HeldOutPlay": {"num_levels": 2, "num_environments": 2, "max_steps": 4},
    "studies.Ablations": {
        "tuning_mazes": 2,
        "choice_levels": 2,
        "natural_levels": 1,
        "top_k": 2,
        "groups": 1,
        "random_sets": 1,
        "max_steps": 3,
        "natural_steps": 3,
        "frame_levels": 2,
    },
    "studies.Atlas": {
        "num_frames": 64,
        "settings": {"best": 2, "per_band": 1, "effect_sample": 16, "optimisation": {"steps": 1, "starts": 2}},
        "cache_dir": "cache",
    },
    "studies.AskedReturns": {
        "agent": "transformer.safetensors",
        "reference": "cloning.safetensors",
        "num_levels": 2,
        "num_environments": 2,
        "max_steps": 4,
        "film_levels": 1,
    },
    "studies.LearningCurve": {"num_levels": 2, "max_steps": 4},
    "studies.EvaluateAgent": {"num_levels": 2, "num_environments": 2, "max_steps": 4},
    "studies.EvaluateSAE": {"num_levels": 2, "num_environments": 2, "max_steps": 4, "validation_frames": 64},
    "studies.FeatureGroups": {
        "num_frames": 64,
        "groups": 2,
        "examples": 2,
        "optimisation": {"steps": 2, "starts": 2},
        "cache_dir": "cache",
    },
    "studies.FeatureImages": {"num_frames": 64, "cache_dir": "cache", "settings": {"steps": 2, "starts": 2}},
    "studies.LabelCorrelations": {"num_frames": 64},
    "studies.ProbeAtlas": {
        "taps": ["conv4a"],
        "targets": ["target"],
        "num_frames": 32,
        "validation_frames": 16,
        "test_frames": 16,
        "play": {"environments": 4, "steps": 8},
        "cache_dir": "cache",
    },
    "studies.SAEBaselines": {
        "shown": 2,
        "examples": 1,
        "optimisation": {"steps": 1, "starts": 2},
        "num_frames": 512,
        "batch_size": 256,
        "fit_rows": 2_000,
        "steps": 2,
        "validation_frames": 64,
        "splice_levels": 2,
        "max_steps": 4,
    },
    "studies.DirectionalUnits": {"levels": 2, "permutations": 9},
    "studies.EntityUnits": {"levels": 2, "permutations": 9},
    "studies.Patching": {"taps": ["conv4a"], "num_levels": 12, "validation_levels": 12},
    "studies.Replacement": {"taps": ["conv4a"], "kernel": 3, "fit_levels": 3, "num_levels": 3, "max_steps": 9},
    "studies.Steering": {
        "taps": ["conv4a"],
        "sources": ["means"],
        "strengths": [1.0],
        "num_levels": 6,
        "tuning_levels": 6,
        "fit_levels": 12,
        "comparison_levels": 2,
        "max_steps": 8,
    },
    "studies.EntityTracking": {"rooms": 1, "steps": 4, "players": [[4, 4]], "shuffles": 4},
    "studies.Retargeting": {
        "num_levels": 6,
        "comparison_levels": 2,
        "max_steps": 8,
        "finish_steps": 8,
        "probe_mazes": 6,
        "search": {"mazes": 3, "steps": 2, "unit_counts": [2, 4]},
    },
    "studies.SpatialIntervention": {
        "kinds": ["choice"],
        "scan_scenes": 1,
        "test_scenes": 2,
        "max_steps": 3,
        "starts": 1,
        "filmed": 1,
        "frame_levels": 2,
    },
    "studies.VectorFields": {"levels": [0], "mazes": 2, "drawn": 1, "max_steps": 4, "keys_and_locks": [[3, 1]]},
    "studies.Watch": {"max_steps": 2},
    "callbacks.SpliceEvaluation": {"num_levels": 2, "num_environments": 2, "max_steps": 4},
}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a random agent in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    torch.manual_seed(0)
    save_weights("agent.safetensors", CustomCNN(), {})
    save_weights("transformer.safetensors", DecisionTransformer(), {})
    save_weights("cloning.safetensors", DecisionTransformer(context=1, tokens=["observation"]), {})
    return tmp_path


def shrink(config: Path) -> list[str]:
    """Write a small version of a configuration into the working directory; returns the arguments that run it."""
    values = yaml.safe_load(config.read_text())
    trainer = values["trainer"] | {
        "accelerator": "cpu",
        "max_steps": 2,
        "max_epochs": None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    values["trainer"] = trainer
    for part in [values["model"], values["data"], *trainer["callbacks"]]:
        given = part.get("init_args", {})
        part["init_args"] = given | SHRUNK.get(part["class_path"], {})
        if given.get("positions_per_frame", 64) is None:
            part["init_args"]["positions_per_frame"] = None  # whole maps stay whole
        if "decision_transformer" in str(given.get("agent", "")) and part is values["data"]:
            part["init_args"] |= {"agent": "transformer.safetensors", "taps": given["taps"]}
        if part["init_args"].get("features"):
            part["init_args"]["features"]["agent"] = "agent.safetensors"
        for source in part["init_args"].get("sources", []):
            source["player"] = "agent.safetensors" if "/" in source["player"] else source["player"]
        if part["init_args"].get("encoder_weights"):
            part["init_args"]["encoder_weights"] = "agent.safetensors"
        rhythm = {"every_n_epochs", "every_n_train_steps"} & part["init_args"].keys()
        part["init_args"] |= dict.fromkeys(rhythm, 1)
    arguments = values["model"]["init_args"]
    if values["model"]["class_path"] != "lightning_modules.LinearProbe":
        arguments["compile"] = False  # its own tests compile; here it would take most of the time
    arguments |= {"warm_start": "agent.safetensors"} if arguments.get("warm_start") else {}
    small = Path(config.name)
    small.write_text(yaml.safe_dump(values))
    return ["--config", str(small)]


def summary(name: str, version: int = 0) -> dict[str, float]:
    return json.loads(Path(f"runs/{name}/version_{version}/summary.json").read_text())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_runs_two_steps(workplace: Path, config: Path) -> None:
    assert train.main(shrink(config)) == 0
    assert summary(config.stem), "a run ends with its metrics"
    assert list(Path(f"runs/{config.stem}/version_0/checkpoints").iterdir()), "and can be gone on from"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_the_last_state_of_every_configuration_is_saved(config: Path) -> None:
    """ModelCheckpoint writes at a run's end only if it has written nothing before."""
    trainer = yaml.safe_load(config.read_text())["trainer"]
    (saving,) = (each["init_args"] for each in trainer["callbacks"] if each["class_path"].endswith("ModelCheckpoint"))
    rhythms = {"max_steps": "every_n_train_steps", "max_epochs": "every_n_epochs"}
    (length,) = (trainer[name] for name in rhythms if name in trainer)
    if trainer.get("max_epochs") == 1:
        assert saving == {"save_last": True, "every_n_train_steps": 1}
    else:
        (rhythm,) = (saving[rhythm] for name, rhythm in rhythms.items() if name in trainer)
        assert length % rhythm == 0


def shrink_study(study: dict[str, Any]) -> None:
    """A small version of a study, of the shipped agent and, where it asks for one that is not shipped, a fresh SAE."""
    arguments = study["init_args"]
    if "studies" in arguments:  # each is run by itself too: here two do, beside all names and types
        analyse.build_parser().parse_args(["--config", str(ROOT / "configs/studies/all.yaml")])
        arguments["studies"] = {name: arguments["studies"][name] for name in ("watch", "label_correlations")}
    for one in arguments.get("studies", {}).values():
        shrink_study(one)
    given = {name: arguments.get(name) for name in ("agent", "sae")}
    arguments |= SHRUNK.get(study["class_path"], {})
    for name, path in given.items():
        if str(path).startswith("pretrained/"):
            arguments[name] = str(ROOT / str(path))
    for name in {"agents", "edits"} & arguments.keys():
        arguments[name] = [str(ROOT / path) for path in arguments[name] or []] or None
    if arguments.get("sae") == "sae.safetensors" or str(given["sae"]).startswith("runs/"):
        known = {"kind": "SparseAutoencoder", "tap": "conv4a"}
        known["agent_hash"] = load_agent(arguments["agent"]).weights_hash
        save_weights("sae.safetensors", SparseAutoencoder(32), known)
        arguments["sae"] = "sae.safetensors"


@pytest.mark.parametrize("config", STUDIES, ids=lambda path: path.stem)
def test_every_study_runs_on_the_shipped_agent(workplace: Path, config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    shrink_study(values["study"])
    Path(config.name).write_text(yaml.safe_dump(values))
    assert analyse.main(["--config", config.name]) == 0
    assert summary(config.stem)


@pytest.mark.parametrize("config", STUDIES, ids=lambda path: path.stem)
def test_every_study_accepts_its_configuration_as_it_is_shipped(
    config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "pretrained", tmp_path / "pretrained")
    trained = tmp_path / "runs/sae_conv4/version_0/sae.safetensors"  # by the main job, where a study takes that
    trained.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "pretrained/heist_easy_customcnn_seed0_sae_conv4a.safetensors", trained)
    monkeypatch.chdir(tmp_path)
    parser = analyse.build_parser()
    assert isinstance(parser.instantiate_classes(parser.parse_args(["--config", str(config)])).study, Study)


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
