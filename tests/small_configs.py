"""Small versions of the shipped configurations, for tests that run them; not a test itself.

Configurations are taken as they are, except that SHRUNK makes what they configure small. A new class in a configuration
that takes long needs its line there.
"""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

import analyse
from networks import CustomCNN, DecisionTransformer, SparseAutoencoder, load_agent, save_weights

ROOT = Path(__file__).parents[1]

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
    "studies.StreamedExamples": {"num_frames": 96, "units": [0, 3], "play": {"environments": 8, "steps": 6}},
    "studies.DirectionalUnits": {"taps": ["conv4a", "fc2"], "levels": 2, "permutations": 9},
    "studies.EntityUnits": {"taps": ["conv4a"], "levels": 2, "permutations": 9},
    "studies.Plans": {"taps": ["fc1"], "fit_levels": 40, "num_levels": 12, "least": 2, "max_steps": 20},
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
    "studies.EntityTracking": {"taps": ["conv4a"], "rooms": 1, "steps": 4, "players": [[4, 4]], "shuffles": 4},
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


def save_networks() -> None:
    """Networks with random weights in the working directory, under the names that small configurations use."""
    torch.manual_seed(0)
    save_weights("agent.safetensors", CustomCNN(), {})
    save_weights("transformer.safetensors", DecisionTransformer(), {})
    save_weights("cloning.safetensors", DecisionTransformer(context=1, tokens=["observation"]), {})


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
        if arguments[name]:
            arguments[name] = [str(ROOT / path) for path in arguments[name]]
    if arguments.get("sae") == "sae.safetensors" or str(given["sae"]).startswith("runs/"):
        known = {"kind": "SparseAutoencoder", "tap": "conv4a"}
        known["agent_hash"] = load_agent(arguments["agent"]).weights_hash
        save_weights("sae.safetensors", SparseAutoencoder(32), known)
        arguments["sae"] = "sae.safetensors"


def summary(name: str, version: int = 0) -> dict[str, float]:
    return json.loads(Path(f"runs/{name}/version_{version}/summary.json").read_text())
