"""The study only calls `play_asked`: here is tested what it plays, compares and refuses."""

from pathlib import Path

import pytest
import torch

from interpretability.asked_play import play_asked
from networks import CustomCNN, DecisionTransformer, save_weights
from studies import AskedReturns, EvaluateAgent

FEW = {"num_levels": 3, "max_steps": 5, "film_levels": 2, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights")
    save_weights(path / "told.safetensors", DecisionTransformer(width=16, depth=1, heads=2, context=4), {})
    blind = DecisionTransformer(width=16, depth=1, heads=2, context=1, tokens=["observation"])
    save_weights(path / "blind.safetensors", blind, {})
    save_weights(path / "agent.safetensors", CustomCNN(), {})
    return path


def test_returns_and_reference_are_played_on_the_same_levels(folder: Path, tmp_path: Path) -> None:
    study = AskedReturns(str(folder / "told.safetensors"), str(folder / "blind.safetensors"), [0.0, 10.0], **FEW)
    report = study.run()
    expected = play_asked(
        study.network, [10.0, 0.0], range(50_000, 50_003), settings=study.settings, max_steps=5, precision="fp32"
    ).metrics()
    assert expected == pytest.approx({name: report.summary[name] for name in expected})
    others = set(report.summary) - set(expected)
    assert {"dt/rtg_0/solved_drop_low", "cloning/solved", "cloning/return_high", "cloning/solved_gain"} <= others
    assert report.summary["cloning/levels"] == 3
    assert report.summary["cloning/solved_gain"] == report.summary["dt/solved"] - report.summary["cloning/solved"]
    (table,) = report.tables.values()
    assert [row[0] for row in table.rows] == ["10", "0", "reference"]
    assert set(report.films) == {"asked_10", "asked_0"}
    report.write(tmp_path)
    assert (tmp_path / "figures/asked_returns.png").exists()


def test_another_network_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="CustomCNN, which is asked for nothing"):
        AskedReturns(str(folder / "agent.safetensors"))
    for asked in ([], [11.0]):
        with pytest.raises(ValueError, match="give discounted returns of 0 to 10, at least one"):
            AskedReturns(str(folder / "told.safetensors"), asked=asked)
    with pytest.raises(ValueError, match="film_levels 0"):
        AskedReturns(str(folder / "told.safetensors"), film_levels=0)


def test_the_usual_evaluation_plays_it_at_its_own_return(folder: Path) -> None:
    path, few = str(folder / "told.safetensors"), {**FEW, "max_steps": 30}
    asked = AskedReturns(path, asked=[10.0], **few).run().summary
    few["film_episodes"] = few.pop("film_levels")
    usual = EvaluateAgent(path, choose="sampled", **few).run().summary
    for name in ("return", "solved", "episode_length_high"):
        assert usual[f"agent/{name}"] == asked[f"dt/{name}"]
