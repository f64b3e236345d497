"""Every shipped configuration runs two steps through train.py, every study through analyse.py."""

import shutil
from pathlib import Path

import pytest
import yaml

import analyse
import train
from studies import Study
from tests.small_configs import ROOT, shrink, shrink_study, summary

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))


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
    assert isinstance(parser.instantiate(parser.parse_args(["--config", str(config)])).study, Study)
