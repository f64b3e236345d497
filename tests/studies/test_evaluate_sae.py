from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules import ActivationDataModule
from environments import EnvironmentSettings
from interpretability.splice import evaluate_splice
from networks import CustomCNN, SAEBase, SparseAutoencoder, TopKSAE, load_agent, load_sae, save_weights
from studies import EvaluateSAE

FRAMES = 96
PLAY = {"num_environments": 4, "max_steps": 8, "seed": 2}
SMALL: dict[str, Any] = {**PLAY, "num_levels": 4, "validation_frames": FRAMES, "device": "cpu"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An agent, two seeds of a TopK autoencoder of conv4a, a ReLU one and one of fc1, and a folder for caches."""
    folder = tmp_path_factory.mktemp("saes")
    torch.manual_seed(3)
    save_weights(folder / "agent.safetensors", CustomCNN(), {})
    agent = load_agent(folder / "agent.safetensors")
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    seeds = {"a/sae": TopKSAE(32, 2, k=3), "b/sae": TopKSAE(32, 2, k=3), "relu": SparseAutoencoder(32, 2)}
    seeds["a/sae"].encoder_bias.data[::2] = -100  # never fire
    saes: dict[str, tuple[str, SAEBase]] = {name: ("conv4a", sae) for name, sae in seeds.items()}
    saes["flat"] = ("fc1", TopKSAE(256, 1, k=20))
    paths = {"agent": str(folder / "agent.safetensors"), "cache": str(folder / "cache")}
    for name, (tap, sae) in saes.items():
        with torch.no_grad():
            rows = agent(frames, record=[tap]).activations[tap].movedim(1, -1).flatten(0, -2)
        sae.set_normalisation(rows.mean(0), rows.std())
        paths[name] = str(folder / f"{name}.safetensors")
        known = {"kind": type(sae).__name__, "tap": tap, "agent_hash": agent.weights_hash}
        save_weights(paths[name], sae, known)
    return paths


@pytest.fixture(scope="module")
def report(files: dict[str, str]) -> Any:
    paths = [files[name] for name in ("a/sae", "b/sae", "flat")]
    return EvaluateSAE(files["agent"], paths, cache_dir=files["cache"], **SMALL).run()


def validation_rows(files: dict[str, str], tap: str) -> torch.Tensor:
    data = ActivationDataModule(files["agent"], [tap], validation_frames=FRAMES, cache_dir=files["cache"])
    maps = torch.cat([batch.activations[tap].double() for batch in data.val_dataloader()])
    data.teardown("validate")
    return maps.movedim(1, -1).flatten(0, -2)


@pytest.mark.parametrize(("name", "tap"), [("a/sae", "conv4a"), ("b/sae", "conv4a"), ("flat", "fc1")])
def test_statistics_agree_with_naive_code(report: Any, files: dict[str, str], name: str, tap: str) -> None:
    rows, sae = validation_rows(files, tap), load_sae(files[name]).double()
    with torch.no_grad():
        latents = sae.encode(rows)
        errors = (sae.decode(latents) - rows).square()
    found = {key.removeprefix(f"sae/{name}/"): value for key, value in report.summary.items() if f"e/{name}/" in key}
    varying = rows.std(0) > 0
    errors, total = (part[:, varying].sum() for part in (errors, (rows - rows.mean(0)).square()))
    assert found["explained_variance"] == pytest.approx(float(1 - errors / total), abs=2e-3)  # decoded in bf16
    assert found["l0"] == pytest.approx(float((latents > 0).sum(1).double().mean()), rel=1e-3)
    assert found["l0_raw"] == pytest.approx(float((rows > 0).sum(1).double().mean()), rel=1e-6)
    assert found["dead_fraction"] == pytest.approx(float((latents.amax(0) == 0).double().mean()))
    assert found["almost_dead_fraction"] >= found["dead_fraction"]
    unit = F.normalize(sae.decoder_weight[:, :, 0, 0].T, dim=1)
    assert found["duplicate_fraction"] == pytest.approx(
        float(((unit @ unit.T).fill_diagonal_(0) > 0.9).any(1).float().mean())
    )
    assert found["latents"] == sae.num_latents
    assert found["validation_frames"] == FRAMES


@pytest.mark.parametrize(("name", "tap"), [("a/sae", "conv4a"), ("b/sae", "conv4a"), ("flat", "fc1")])
def test_every_splice_is_as_if_it_were_the_only_one(report: Any, files: dict[str, str], name: str, tap: str) -> None:
    agent, sae = load_agent(files["agent"]), load_sae(files[name])
    alone = evaluate_splice(agent, tap, sae, range(4), settings=EnvironmentSettings(), **PLAY).metrics()
    found = {key.replace(f"/{name}/", "/"): value for key, value in report.summary.items() if f"splice/{name}/" in key}
    assert found == pytest.approx(alone, nan_ok=True)
    assert alone["splice/kl"] > 0


def test_seeds_are_compared_and_other_recipes_are_not(report: Any, files: dict[str, str]) -> None:
    rows = validation_rows(files, "conv4a")
    saes = [load_sae(files[name]).requires_grad_(False).double() for name in ("a/sae", "b/sae")]
    often = (saes[0].encode(rows) > 0).double().mean(0) >= 1e-3
    own, others = (sae.decoder_weight[:, :, 0, 0].T for sae in saes)
    best = [float(F.cosine_similarity(direction, others).max()) for direction in own[often]]
    assert 0 < len(best) < 64
    assert report.summary["sae/a/sae/seed_cosine"] == pytest.approx(np.mean(best), abs=5e-3)
    assert "sae/flat/seed_cosine" not in report.summary
    table = report.tables["autoencoders"]
    assert [row[:3] for row in table.rows] == [
        ["a/sae", "conv4a", "TopKSAE"],
        ["b/sae", "conv4a", "TopKSAE"],
        ["flat", "fc1", "TopKSAE"],
    ]
    assert {"cosine to channels", "effective latents"} <= set(table.columns)
    stability = table.columns.index("cosine to seeds")
    assert [row[stability] == "" for row in table.rows] == [False, False, True]
    assert table.columns == report.tables["dictionaries"].columns + report.tables["splices"].columns[3:]
    assert report.tables["splices"].printed
    assert not table.printed


def test_one_file_has_plain_names_and_needs_no_play(files: dict[str, str]) -> None:
    arguments = SMALL | {"num_levels": 0, "cache_dir": files["cache"]}
    report = EvaluateSAE(files["agent"], files["relu"], **arguments).run()
    assert report.summary["sae/l0"] > 0
    assert not any(name.startswith("splice/") for name in report.summary)
    assert list(report.tables) == ["autoencoders", "dictionaries"]
    assert report.tables["autoencoders"].rows[0][0] == "relu"


def test_mistakes_stop_before_any_work(files: dict[str, str], tmp_path: Path) -> None:
    agent, sae = files["agent"], files["relu"]
    for wrong, message in (
        ({"sae": []}, "at least one file"),
        ({"sae": [sae, sae]}, "none twice"),
        ({"sae": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"num_levels": -1}, "num_levels -1 must be at least 0"),
        ({"num_levels": 4, "ablated_levels": 5}, "ablated_levels is 5: choose 1 to num_levels, 4"),
        ({"validation_frames": 0}, "validation_frames 0 must be at least 1"),
        ({"split": "test", "num_levels": 50_001}, "50001 test levels"),
        ({"game": "chess"}, "no game 'chess'"),
    ):
        with pytest.raises(ValueError, match=message):
            EvaluateSAE(**{"agent": agent, "sae": sae, "cache_dir": str(tmp_path / "none")} | SMALL | wrong)
    torch.manual_seed(5)
    other = str(tmp_path / "other.safetensors")
    save_weights(other, CustomCNN(), {})
    with pytest.raises(ValueError, match="trained on another agent"):
        EvaluateSAE(other, sae, **SMALL)
    assert EvaluateSAE(other, sae, allow_other_agent=True, **SMALL).saes["relu"].tap == "conv4a"
    assert not (tmp_path / "none").exists()
