import math
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from interpretability.optimised_images import OptimisationSettings
from networks import CustomCNN, ResidualImpala, TopKSAE, load_agent, load_sae, save_weights
from studies import SAEBaselines
from studies.alike_training import train_alike
from studies.report import Table
from studies.sae_baselines_page import baselines_page, conclusion
from tests.figures import cut_off

SMALL = {
    "num_frames": 256,
    "batch_size": 256,
    "fit_rows": 4_000,
    "steps": 3,
    "validation_frames": 64,
    "max_steps": 4,
    "shown": 3,
    "examples": 2,
    "optimisation": OptimisationSettings(steps=1, starts=2),
    "device": "cpu",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[str, str, str]:
    """An agent, an autoencoder of it and a folder for caches."""
    folder = tmp_path_factory.mktemp("baselines")
    torch.manual_seed(3)
    agent, sae = folder / "agent.safetensors", folder / "sae.safetensors"
    save_weights(agent, CustomCNN(), {})
    training = {"learning_rate": 1e-3, "warmup_steps": 1, "unknown_to_this_version": 1}
    known = {"kind": "TopKSAE", "tap": "conv4a", "agent_hash": load_agent(agent).weights_hash, "training": training}
    save_weights(sae, TopKSAE(32, 2, k=3), known | {"batch_size": 512})
    return str(agent), str(sae), str(folder / "cache")


def test_codes_are_compared_at_the_autoencoders_sparsity(files):
    agent, sae, cache_dir = files
    copied = shutil.copy(sae, Path(sae).with_name("copied.safetensors"))
    report = SAEBaselines(agent, sae, (str(copied),), cache_dir=cache_dir, splice_levels=2, **SMALL).run()
    summary = report.summary
    for name in ("sae", "channels", "pca", "nmf", "random_decoder", "random_agent"):
        low, middle, high = (summary[f"baselines/{name}/concept_auc{end}"] for end in ("_low", "", "_high"))
        assert 0 <= low <= middle <= high <= 1, name
        assert 0 <= summary[f"baselines/{name}/entity_auc"] <= 1
    assert summary["baselines/sae_2/explained_variance"] == summary["baselines/sae/explained_variance"]
    seeds = [summary[f"baselines/sae_seeds/explained_variance{end}"] for end in ("_low", "", "_high")]
    assert seeds == [summary["baselines/sae/explained_variance"]] * 3  # of the same weights
    l0 = summary["baselines/sae/l0"]
    assert 0 < l0 <= 3
    for name in ("channels", "pca", "ica", "nmf"):
        assert summary[f"baselines/{name}/l0"] == pytest.approx(l0, rel=0.25), name  # other frames than it was fixed on
        whole, sparse = (summary[f"baselines/{each}/explained_variance"] for each in (f"{name}_full", name))
        assert sparse < whole
        assert whole > (0.9 if name == "nmf" else 0.999)
        assert summary[f"baselines/{name}/return_ratio_high"] >= 0 or math.isnan(
            summary[f"baselines/{name}/return_ratio"]
        )
        assert summary[f"baselines/{name}/kl"] >= 0
    assert summary["baselines/nmf/components"] == summary["baselines/random_agent/components"] == 64
    assert summary["baselines/pca/components"] == 32
    assert "baselines/random_agent/kl" not in summary
    assert summary["baselines/mean_ablation/kl"] > 0
    codes = [row[0] for row in report.tables["codes"].rows]
    assert codes[0] == "sae"
    assert len(codes) == len(set(codes)) == 14
    assert len(report.figures["codes"].axes[0].lines) == 13
    assert not cut_off(report.figures["codes"])
    for other in ("channels", "pca", "random_decoder"):
        key = f"concept_auc_less_{other}"
        low, gain, high = (summary[f"baselines/sae/{key}{end}"] for end in ("_low", "", "_high"))
        wanted = summary["baselines/sae/concept_auc"] - summary[f"baselines/{other}/concept_auc"]
        assert gain == pytest.approx(wanted, abs=1e-6)
        assert low <= gain <= high
        assert summary[f"baselines/sae_seeds/{key}"] == pytest.approx(gain)
    page = report.pages["baselines"]
    assert page.count("<img") == 3
    assert f"mean AUC of {summary['baselines/sae/concept_auc']:.3f}" in page
    assert report.figures["latents"].shape == report.figures["channels"].shape


def test_other_agents_are_compared_alike(files, tmp_path):
    agent, sae, cache_dir = files
    torch.manual_seed(4)
    other = tmp_path / "agent.safetensors"  # called as the study's own is, as files of trainings are
    save_weights(other, CustomCNN(), {})
    small = SMALL | {"cache_dir": cache_dir, "fit_rows": 500}
    report = SAEBaselines(agent, sae, agents=(str(other),), **small).run()
    rows = report.tables["agents"].rows
    assert [row[:2] for row in rows] == [
        [name, code] for name in ("agent", str(other), "mean over agents") for code in ("sae", "channels", "pca")
    ]
    # the other agent by itself, with an autoencoder of its own in the first place
    alone = SAEBaselines(str(other), _alike(files, other, tmp_path, cache_dir), **small).run().summary
    for code in ("sae", "channels", "pca"):
        for key in ("explained_variance", "l0", "concept_auc", "entity_auc"):
            both = [report.summary[f"baselines/{code}/{key}"], alone[f"baselines/{code}/{key}"]]
            mean, low, high = (report.summary[f"baselines/agents/{code}/{key}{end}"] for end in ("", "_low", "_high"))
            assert mean == pytest.approx(sum(both) / 2)
            # Student's t with one degree of freedom: tan(pi * .475) times half the distance
            assert high - low == pytest.approx(abs(both[0] - both[1]) * math.tan(math.pi * 0.475), rel=1e-5, abs=1e-9)
    key = "baselines/agents/sae/concept_auc_less_channels"
    assert report.summary[key] == pytest.approx(
        report.summary["baselines/agents/sae/concept_auc"] - report.summary["baselines/agents/channels/concept_auc"]
    )
    assert "Over agents" in report.pages["baselines"]
    assert "over agents" in report.pages["baselines"].split("<table")[0]


def _alike(files, other: Path, folder: Path, cache_dir: str) -> str:
    """The file of an autoencoder of another agent, trained as the first agent's was."""
    given = load_sae(files[1])
    study = SAEBaselines(files[0], files[1], agents=(str(other),), cache_dir=cache_dir, **SMALL)
    data = study._data(str(other))
    trained = train_alike(given, data, study.steps, study.seed, study.device)
    data.teardown("fit")
    path = folder / "alike.safetensors"
    save_weights(path, trained, given.metadata | {"agent_hash": load_agent(other).weights_hash})
    return str(path)


def test_the_conclusion_says_what_the_numbers_say():
    numbers = {"explained_variance": 0.9, "l0": 4.0, "concept_auc": 0.8, "entity_auc": 0.7}
    gains = {"channels": (0.1, 0.05, 0.15), "pca": (-0.1, -0.2, -0.05), "random_decoder": (0.0, -0.1, 0.1)}
    names = ("sae", "channels", "pca", "random decoder")
    ends = ("", "_low", "_high")
    differences = {
        f"concept_auc_less_{k}{e}": v for k, three in gains.items() for e, v in zip(ends, three, strict=True)
    }
    measured = dict.fromkeys(names, numbers) | {"sae": numbers | differences, "random decoder": {"l0": 10.12}}
    said = conclusion("conv4a", measured)
    assert "better than those of raw channels (+0.100, 95 % interval +0.050 to +0.150" in said
    assert "worse than those of principal components" in said
    assert "no better and no worse than those of random directions, which have an L0 of 10.1, (" in said
    assert "seeds" not in said
    assert said.endswith("of each entity's own unit alone it is 0.700, of raw channels 0.700.")
    assert "over seeds of autoencoders +0.100" in conclusion("conv4a", measured | {"sae seeds": numbers | differences})
    assert "AUC" not in conclusion("fc1", dict.fromkeys(names, numbers))


def test_on_a_tap_that_falls_below_zero_there_are_no_non_negative_factors_and_the_page_says_so(files):
    agent, sae, cache_dir = files
    study = SAEBaselines(agent, sae, cache_dir=cache_dir, **SMALL)
    rows = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    assert list(study._components(rows)) == ["channels", "pca", "ica"]
    for names, said in ((["channels", "pca"], 1), (["channels", "nmf"], 0)):
        codes = Table(["code"], [[name] for name in names])
        page = baselines_page("", codes, Table(["autoencoder"], []), Figure(), {}, None)
        assert page.count("Activations fall below 0 here") == said


def test_the_random_agent_and_the_random_decoder_are_what_they_are_called(files):
    agent, sae, cache_dir = files
    study = SAEBaselines(agent, sae, cache_dir=cache_dir, **SMALL)
    drawn = load_agent(study._random_agent())
    assert drawn.weights_hash != study.agent.weights_hash
    assert drawn.weights_hash == load_agent(study._random_agent()).weights_hash
    for frozen in (True, False):
        trained = []
        for study.steps in (1, 3):
            trained.append(study._train(study.data, random_decoder=frozen))
        assert torch.equal(trained[0].decoder_weight, trained[1].decoder_weight) == frozen
        assert not torch.equal(trained[0].encoder_weight, trained[1].encoder_weight)
        assert isinstance(trained[0], TopKSAE)
        assert (trained[0].k, trained[0].num_latents) == (3, 64)
    study.data.teardown("fit")


def test_batches_are_as_large_as_the_autoencoders_were(files, tmp_path):
    agent, sae, cache_dir = files
    shared = SMALL | {"cache_dir": cache_dir}
    own = {name: value for name, value in shared.items() if name != "batch_size"}
    assert SAEBaselines(agent, sae, **own).data.batch_size == 512
    assert SAEBaselines(agent, sae, **shared).data.batch_size == 256
    silent = {name: value for name, value in load_sae(sae).metadata.items() if name != "batch_size"}
    save_weights(tmp_path / "silent.safetensors", load_sae(sae), silent)
    assert SAEBaselines(agent, str(tmp_path / "silent.safetensors"), **own).data.batch_size == 4_096


def test_mistakes_are_named(files, tmp_path):
    agent, sae, cache_dir = files
    with pytest.raises(ValueError, match="steps 0 must be at least 1"):
        SAEBaselines(agent, sae, **SMALL | {"steps": 0})
    with pytest.raises(ValueError, match="the study's own agent, or named twice"):
        SAEBaselines(agent, sae, agents=(agent,), **SMALL)
    save_weights(tmp_path / "narrow.safetensors", ResidualImpala(), {})
    with pytest.raises(ValueError, match=r"narrow\.safetensors has no conv4a with 32 channels"):
        SAEBaselines(agent, sae, agents=(str(tmp_path / "narrow.safetensors"),), **SMALL)
    with pytest.raises(ValueError, match="shown"):
        SAEBaselines(agent, sae, **SMALL | {"shown": 0})
    torch.manual_seed(5)
    save_weights(tmp_path / "other.safetensors", CustomCNN(), {})
    with pytest.raises(ValueError, match="trained on another agent"):
        SAEBaselines(str(tmp_path / "other.safetensors"), sae, **SMALL)
    assert load_sae(sae).tap == "conv4a"
    assert not Path(cache_dir, "nothing").exists()
