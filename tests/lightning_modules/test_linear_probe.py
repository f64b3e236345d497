from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from interpretability import ProbeResult
from lightning_modules import LinearProbe
from lightning_modules.principal_components import principal_components
from tests.probe_training import SIZE, PlantedProbes

TARGETS = ["next_direction", "held_red_key", "path_length"]


def make(**changes: Any) -> LinearProbe:
    return LinearProbe(**({"targets": TARGETS, "position_rows": 4_000} | changes))


def trainer(folder: Path, **changes: Any) -> Trainer:
    arguments: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    arguments |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, **(arguments | changes))


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[LinearProbe, dict[str, float]]:
    module, data = make(), PlantedProbes()
    runner = trainer(tmp_path_factory.mktemp("run"))
    runner.fit(module, datamodule=data)
    assert runner.global_step == 6, "a step a subject"
    runner.test(module, datamodule=data, verbose=False)
    return module, {name: float(value) for name, value in runner.callback_metrics.items()}


def result(module: LinearProbe, form: str, target: str, tap: str) -> ProbeResult:
    (found,) = [r for r in module.results if (r.form, r.target, r.tap) == (form, target, tap)]
    return found


def test_what_is_planted_is_read_where_it_is_and_nowhere_else(tested: tuple[LinearProbe, Any]) -> None:
    module, _ = tested
    for form in ("flat", "pooled"):
        found = result(module, form, "next_direction", "map")
        assert found.scores["accuracy"].value > 0.97
        assert found.best
        assert result(module, form, "path_length", "map").scores["r2"].value > 0.95
        for name, control in found.controls.items():
            assert control.low < 0.25 + 0.12, name
            assert control.value < 0.35, name
    noise = result(module, "flat", "next_direction", "noise")
    assert not noise.best
    assert noise.scores["accuracy"].low < 0.27
    assert set(noise.controls) == {"majority", "shuffled", "random_agent", "pixels_pca", "pixels"}
    assert result(module, "flat", "path_length", "noise").scores["r2"].value < 0.02


def test_the_position_form_finds_the_player_and_knows_no_answers_for_the_absent(
    tested: tuple[LinearProbe, Any],
) -> None:
    module, _ = tested
    found = result(module, "position", "player", "map")
    assert found.scores["accuracy"].value > 0.99
    assert found.scores["macro_f1"].value > 0.97
    assert found.controls["majority"].value < 0.25
    assert found.controls["random_agent"].value < 0.25
    assert [r.target for r in module.results if r.form == "position"] == ["player"]
    direction = module.readout("map", "position").direction("player", "here")
    assert direction.vector.argmax() == 0
    assert direction.vector[0] > 0.95


def test_ties_are_left_out_and_a_constant_target_is_right_by_itself(tested: tuple[LinearProbe, Any]) -> None:
    module, _ = tested
    labels = PlantedProbes().labels("test")
    confusion = result(module, "flat", "next_direction", "map").confusion
    assert confusion is not None
    assert confusion.sum() == (~labels["direction_tied"]).sum()
    assert result(module, "flat", "held_red_key", "noise").scores["accuracy"].value == 1


def test_the_best_tap_is_compared_with_the_pixels(tested: tuple[LinearProbe, Any]) -> None:
    module, _ = tested
    for form, target in (("flat", "next_direction"), ("position", "player"), ("flat", "path_length")):
        found = result(module, form, target, "map")
        assert found.above_pixels is not None
        difference = found.scores[found.headline].value - found.controls["pixels"].value
        assert found.above_pixels.value == pytest.approx(difference)
        assert found.above_pixels.low < difference < found.above_pixels.high
    assert result(module, "flat", "next_direction", "noise").above_pixels is None


def test_the_usual_position_is_that_of_training(tested: tuple[LinearProbe, Any]) -> None:
    module, data = tested[0], PlantedProbes()
    where = {}
    for split in ("training", "test"):
        column, row = np.floor(data.labels(split)["position"]).astype(int).T
        where[split] = (SIZE - 1 - row) * SIZE + column
    usual = np.bincount(where["training"]).argmax()
    assert usual != np.bincount(where["test"]).argmax(), "or the test could not fail"
    expected = float((where["test"] == usual).mean())
    assert result(module, "position", "player", "map").controls["majority"].value == pytest.approx(expected)


def test_components_are_read_as_scikit_learn_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ridge on a few whitened components, though the readout is one of pixels."""
    monkeypatch.setattr(principal_components, "__defaults__", (5,))
    data = PlantedProbes()
    module = make(targets=["path_length"], forms=("flat", "position"), shuffled=False)
    trainer(tmp_path).fit(module, datamodule=data)
    examples = data.examples("pixels_pca", ("training", "test"))["pixels_pca"]
    x = {split: each.activations.flatten(1).float().numpy() for split, each in examples.items()}
    readout = module.readout("pixels_pca", "flat", "pixels_pca")
    ridge = make_pipeline(PCA(5, whiten=True), Ridge(float(readout.strength[0]) * len(x["training"])))
    ridge.fit(x["training"], examples["training"].labels["path_length"])
    given = readout(examples["test"].activations).detach().numpy()[:, 0]
    np.testing.assert_allclose(given, ridge.predict(x["test"]), atol=2e-3)
    with pytest.raises(ValueError, match="nothing was fitted"):
        module.readout("pixels_pca", "position", "pixels_pca")


def test_metrics_have_the_documented_names(tested: tuple[LinearProbe, dict[str, float]]) -> None:
    module, metrics = tested
    for ending in ("", "_low", "_high"):
        assert f"probe/natural/flat/next_direction/map/accuracy{ending}" in metrics
        assert f"probe/natural/flat/path_length/noise/control_pixels{ending}" in metrics
        assert f"probe/natural/flat/path_length/best/above_pixels{ending}" in metrics
    best = metrics["probe/natural/flat/next_direction/best/accuracy"]
    assert best == metrics["probe/natural/flat/next_direction/map/accuracy"]
    assert "probe/natural/pooled/next_direction/noise/accuracy" not in metrics, "a flat tap has no other form"


def test_direction_statistics_are_those_of_the_training_activations(tested: tuple[LinearProbe, Any]) -> None:
    module, _ = tested
    acts = PlantedProbes().examples("agent", ("training",))["map"]["training"].activations.float()
    for form in ("flat", "pooled"):
        for target, output in (("next_direction", "up"), ("path_length", "moves")):
            direction = module.readout("map", form).direction(target, output)
            components = (acts * direction.vector).sum((1, 2, 3))
            assert direction.mean == pytest.approx(float(components.mean()), abs=1e-2)
            assert direction.std == pytest.approx(float(components.std()), rel=1e-2)


def test_a_run_that_stops_between_two_taps_goes_on_there(tested: tuple[LinearProbe, Any], tmp_path: Path) -> None:
    whole, _ = tested
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, max_steps=2, enable_checkpointing=True, callbacks=[saving]).fit(
        make(), datamodule=PlantedProbes()
    )
    second, data = make(), PlantedProbes()
    runner = trainer(tmp_path)
    runner.fit(second, datamodule=data, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert runner.global_step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_a_checkpoint_of_other_probes_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def load(checkpoint: dict[str, Any], **changes: Any) -> None:
        torch.save(checkpoint, tmp_path / "saved.ckpt")
        module = make(**({"forms": ("flat",)} | changes))
        trainer(tmp_path, max_steps=1).fit(
            module, datamodule=PlantedProbes(), ckpt_path=tmp_path / "saved.ckpt", weights_only=True
        )

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1)
    trainer(tmp_path, max_steps=1, enable_checkpointing=True, callbacks=[saving]).fit(
        make(forms=("flat",)), datamodule=PlantedProbes()
    )
    saved = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    load(saved)
    with pytest.raises(ValueError, match=r"sharing 10.0 there, 0.0 here; seed 0 there, 1 here"):
        load(saved, sharing=0.0, seed=1)
    with pytest.raises(ValueError, match=r"forms \['flat'\] there, \['flat', 'pooled'\] here"):
        load(saved, forms=("flat", "pooled"))
    before = {name: value for name, value in saved.items() if name != "probe_settings"}
    load(before, seed=1)
    with pytest.raises(ValueError, match="of other taps"):
        load(before, forms=("flat", "pooled"))
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        load(saved | {"PlantedProbes": {"done": 0}}, seed=1)  # none would stand beside those of another seed
    assert any(line.endswith("checkpoint: seed 0 there, 1 here") for line in caplog.messages)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["colour"]}, "no target 'colour'"),
        ({"forms": ()}, "choose at least one"),
        ({"strengths": (0.1, 1.0)}, "falling numbers"),
        ({"path_rows": 0}, "path_rows is 0"),
        ({"sharing": -1.0}, "sharing is -1"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)
    with pytest.raises(ValueError, match="nothing was fitted to fc9"):
        make().readout("fc9")
    data = PlantedProbes()
    data.subjects = [subject for subject in data.subjects if len(subject.shape) == 1]
    with pytest.raises(ValueError, match=r"forms \['pooled'\] are of maps, and no tap is one"):
        trainer(tmp_path).fit(make(forms=("pooled",)), datamodule=data)
    with pytest.raises(ValueError, match="precision 64-true: probes are fitted in float32"):
        trainer(tmp_path, precision="64-true").fit(make(), datamodule=PlantedProbes())
