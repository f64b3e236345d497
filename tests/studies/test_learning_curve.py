import numpy as np
import pytest
import torch

from networks import CustomCNN, ResidualImpala, load_agent, save_weights
from networks.origin import parent
from studies import EvaluateAgent, LearningCurve
from tests.figures import cut_off

PLAY = {"num_levels": 4, "max_steps": 20, "num_environments": 4, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def agents(tmp_path_factory) -> list[str]:
    folder, paths = tmp_path_factory.mktemp("weights"), []
    torch.manual_seed(0)
    for name, known in (
        ("scratch", {"training": "PPO", "warm_started": False, "env_steps": 100}),
        ("clone", {"training": "behaviour cloning", "env_steps": 30}),
        ("after", {"training": "PPO", "env_steps": 50}),
    ):
        if name == "after":
            clone = load_agent(folder / "clone.safetensors")
            known["parent"] = parent(clone.weights_hash, clone.metadata)
        save_weights(folder / f"{name}.safetensors", CustomCNN(), known)
        paths.append(str(folder / f"{name}.safetensors"))
    return paths


def test_each_checkpoint_lies_at_the_frames_of_its_whole_way(agents):
    report = LearningCurve(agents, **PLAY).run()
    assert [report.summary[f"curve/{name}/frames"] for name in ("scratch", "clone", "after")] == [100, 30, 80]
    alone = EvaluateAgent(agents[2], choose="sampled", film_episodes=0, split="test", **PLAY).run().summary
    for name in ("return", "solved", "episode_length", "return_low"):
        assert report.summary[f"curve/after/{name}"] == pytest.approx(alone[f"agent/{name}"])
    axes = report.figures["learning_curve"].axes[0]
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    drawn = {tuple(np.asarray(line.get_xdata(), dtype=int)) for line in axes.lines}
    assert {(100,), (30,), (80,), (25_000_000, 50_000_000)} <= drawn
    assert [row[2] for row in report.tables["checkpoints"].rows] == [
        "PPO from scratch", "behaviour cloning", "PPO, begun as behaviour cloning",
    ]  # fmt: skip


def test_the_gap_is_between_levels_of_training_and_others(agents, tmp_path):
    paths = []
    for name, start in (("one", 100_000), ("other", 200_000)):
        known = {"training": "PPO", "env_steps": 9, "environment": {"start_level": start, "num_levels": 5}}
        torch.manual_seed(0)
        save_weights(tmp_path / f"{name}.safetensors", CustomCNN(), known)
        paths.append(str(tmp_path / f"{name}.safetensors"))
    report = LearningCurve(paths, training_levels=5, **PLAY | {"max_steps": 60}).run()
    for path, name in zip(paths, ("one", "other"), strict=True):
        arguments = PLAY | {"num_levels": 5, "max_steps": 60}
        alone = EvaluateAgent(path, split="train", choose="sampled", film_episodes=0, **arguments).run()
        assert {row[1] for row in alone.tables["episodes"].rows} == set(
            load_agent(path).metadata["environment"]["start_level"] + np.arange(5)
        )
        got = {
            key: report.summary[f"curve/{name}/{key}"]
            for key in ("return", "training/return", "gap", "gap_low", "gap_high")
        }
        assert got["training/return"] == pytest.approx(alone.summary["agent/return"])
        assert got["gap"] == pytest.approx(got["training/return"] - got["return"])
        assert got["gap_low"] <= got["gap"] <= got["gap_high"]
    labels = report.figures["learning_curve"].axes[0].get_legend_handles_labels()[1]
    assert "PPO from scratch, on levels of its training" in labels
    with pytest.raises(ValueError, match=r"one\.safetensors was trained on 5"):
        LearningCurve(paths, training_levels=6, **PLAY)
    with pytest.raises(ValueError, match="different levels"):
        EvaluateAgent(paths, split="train", **PLAY)
    with pytest.raises(ValueError, match="does not say on which levels"):
        LearningCurve(agents, training_levels=1, **PLAY)


def test_architectures_have_lines_of_their_own(agents, tmp_path):
    save_weights(
        tmp_path / "residual.safetensors", ResidualImpala(), {"training": "behaviour cloning", "env_steps": 40}
    )
    report = LearningCurve([agents[1], str(tmp_path / "residual.safetensors")], **PLAY).run()
    axes = report.figures["learning_curve"].axes[0]
    assert {(30,), (40,)} <= {tuple(np.asarray(line.get_xdata(), dtype=int)) for line in axes.lines}
    labels = axes.get_legend_handles_labels()[1]
    assert {"CustomCNN, behaviour cloning", "ResidualImpala, behaviour cloning"} <= set(labels)


def test_other_games_have_no_published_points(agents):
    report = LearningCurve(agents[:1], game="maze", **PLAY).run()
    assert "curve/scratch/optimality" not in report.summary
    assert all(max(line.get_xdata(), default=0) <= 100 for line in report.figures["learning_curve"].axes[0].lines)


def test_mistakes_stop_before_any_work(agents, tmp_path):
    save_weights(tmp_path / "unknown.safetensors", CustomCNN(), {})
    with pytest.raises(ValueError, match=r"unknown\.safetensors does not say on how many frames"):
        LearningCurve([str(tmp_path / "unknown.safetensors")], **PLAY)
    with pytest.raises(ValueError, match="same name"):
        LearningCurve([agents[0], agents[0]], **PLAY)
    with pytest.raises(ValueError, match="agents 0 must be at least 1"):
        LearningCurve([], **PLAY)
