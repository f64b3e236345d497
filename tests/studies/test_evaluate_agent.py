import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import analyse
from environments import EnvironmentSettings
from environments.heist import label_states
from interpretability.ablations import MeanAblation
from interpretability.episodes import first_states, play_episodes
from networks import CustomCNN, SparseAutoencoder, load_agent, save_weights
from studies import EvaluateAgent

PLAY = {"num_levels": 6, "num_environments": 6, "max_steps": 6, "split": "validation", "device": "cpu"}

SHIPPED = str(Path(__file__).parents[2] / "pretrained/heist_easy_customcnn_seed0.safetensors")


@pytest.fixture(scope="module")
def agent(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "agent.safetensors"
    save_weights(path, CustomCNN(), {})
    return str(path)


def save_sae(agent: str, path, channels: int = 32) -> str:
    sae = SparseAutoencoder(channels)
    metadata = {"kind": "SparseAutoencoder", "tap": "conv4a", "agent_hash": load_agent(agent).weights_hash}
    save_weights(path, sae, metadata)
    return str(path)


def test_reports_what_was_played(agent):
    study = EvaluateAgent(agent, **PLAY)
    report = study.run()
    played = play_episodes(study.agents[0], range(6), settings=EnvironmentSettings(), num_environments=6, max_steps=6)
    assert report.summary["agent/return"] == played.returns.mean()
    assert report.summary["agent/episode_length"] == played.lengths.mean() == 6
    assert report.summary["agent_greedy/solved_high"] > report.summary["agent_greedy/solved"] == 0
    cells = label_states(first_states(range(6), EnvironmentSettings())).cells
    keys = (cells[:, :3, 0] >= 0).sum(1).tolist()  # `num_keys` of the state may be more than were placed
    for count in set(keys):
        assert report.summary[f"agent/keys_{count}/levels"] == keys.count(count)
    table = report.tables["by_number_of_keys"]
    assert [row[:3] for row in table.rows[:2]] == [
        ["sampled", "all", 6],
        ["sampled", str(min(keys)), keys.count(min(keys))],
    ]
    assert len(report.tables["episodes"].rows) == 12


def test_optimality_is_the_oracles_steps_over_the_agents(tmp_path):
    report = EvaluateAgent(
        SHIPPED, **PLAY | {"num_levels": 4, "max_steps": 100}, choose="sampled", film_episodes=1
    ).run()
    columns = report.tables["episodes"].columns
    rows = [dict(zip(columns, row, strict=True)) for row in report.tables["episodes"].rows]
    ratios = [row["oracle"] / row["length"] for row in rows if row["solved"]]
    assert len(ratios) > 1, "the test needs solved levels"
    assert report.summary["agent/optimality"] == pytest.approx(np.mean(ratios))
    assert report.summary["agent/optimality_low"] <= report.summary["agent/optimality_high"]
    solved = next(row for row in rows if row["solved"])
    first = next(iter(report.films.values()))
    assert next(iter(report.films)) == "sampled_solved"
    assert len(first.frames) > solved["length"]


def test_several_agents(agent, tmp_path):
    torch.manual_seed(1)
    other = str(tmp_path / "other.safetensors")
    save_weights(other, CustomCNN(), {"training": "PPO"})
    with pytest.warns(UserWarning, match="trained in different ways.*other.safetensors: PPO from scratch"):
        study = EvaluateAgent([agent, other], choose="sampled", film_episodes=0, **PLAY)
    report = study.run()
    alone = [EvaluateAgent(path, choose="sampled", film_episodes=0, **PLAY).run() for path in (agent, other)]
    lengths = [each.summary["agent/episode_length"] for each in alone]
    assert report.summary["agent/episode_length"] == pytest.approx(np.mean(lengths))
    assert {"agent/return_iqm", "agent/return_iqm_low", "agent/return_iqm_high"} <= report.summary.keys()
    assert "agent/return_iqm" not in alone[0].summary
    assert [row[:3] for row in report.tables["by_agent"].rows] == [
        ["sampled", agent, "unknown"],
        ["sampled", other, "PPO from scratch"],
    ]
    assert [row[-1] for row in report.tables["episodes"].rows] == [agent] * 6 + [other] * 6
    assert not report.films


def test_edits_of_every_kind(agent, tmp_path):
    sae = save_sae(agent, tmp_path / "sae.safetensors")
    zero = EvaluateAgent(agent, ablation="zero", tap="conv4a", **PLAY)
    assert [tap for tap, _ in zero.edits] == ["conv4a"]
    spliced = EvaluateAgent(agent, sae=sae, **PLAY)
    assert spliced.edits[0][0] == "conv4a"
    assert isinstance(spliced.edits[0][1], SparseAutoencoder)
    mean = EvaluateAgent(agent, ablation="mean", tap="fc1", choose="greedy", **PLAY)
    assert isinstance(mean.edits_for(mean.agents[0])[0][1], MeanAblation)
    assert not any(name.startswith("agent/") for name in mean.run().summary)
    identity = EvaluateAgent(agent, edit=nn.Identity(), tap="conv4a", choose="sampled", **PLAY).run()
    clean = EvaluateAgent(agent, choose="sampled", **PLAY).run()
    assert identity.summary == clean.summary


def test_another_game_has_no_keys(agent):
    report = EvaluateAgent(agent, game="maze", choose="greedy", **PLAY).run()
    assert report.tables["all_levels"].columns[:2] == ["actions", "levels"]
    assert [row[:2] for row in report.tables["all_levels"].rows] == [["greedy", 6]]
    left, _ = report.figures["episodes"].axes
    assert (left.get_title(), left.get_xlabel()) == ("Return", "")


def test_an_agent_of_another_game_is_played_with_a_warning(tmp_path):
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {"environment": {"game": "coinrun"}})
    with pytest.warns(UserWarning, match="trained on coinrun and plays heist"):
        EvaluateAgent(str(tmp_path / "agent.safetensors"), choose="greedy", **PLAY).run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ablation": "zero"}, "need a tap"),
        ({"tap": "conv4a"}, "without an ablation"),
        ({"ablation": "zero", "edit": nn.Identity(), "tap": "conv4a"}, "exclude each other"),
        ({"ablation": "zero", "tap": "conv9"}, "no tap 'conv9'"),
        ({"num_levels": 50_001}, "50001 validation levels"),
        ({"max_steps": 0}, "at least 1"),
        ({"game": "chess"}, "no game 'chess'"),
        ({"agent": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"agent": []}, "at least one file"),
        ({"agent": ["a", "a"]}, "none twice"),
        ({"agent": ["a", "b"], "sae": "c"}, "belongs to the one agent"),
        ({"film_episodes": -1}, "at least 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_mistakes_stop_before_any_work(agent, arguments, message):
    with pytest.raises(ValueError, match=message):
        EvaluateAgent(**{"agent": agent} | PLAY | arguments)


def test_command_line(agent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with open("tiny.yaml", "w") as file:
        yaml.safe_dump({"study": {"class_path": "studies.EvaluateAgent", "init_args": {"agent": agent, **PLAY}}}, file)
    command = ["--config", "tiny.yaml", "--study.init_args.choose", "sampled"]
    assert analyse.main([*command, "--study.init_args.num_levels", "3"]) == 0
    folder = tmp_path / "runs/tiny/version_0"
    assert json.loads((folder / "summary.json").read_text())["agent/levels"] == 3
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["study"]["init_args"]["num_levels"] == 3
    assert config["study"]["init_args"]["distribution_mode"] == "easy"
    assert (folder / "figures/episodes.png").exists()
    assert list(folder.glob("films/sampled_*.gif"))
    assert list(folder.glob("events.out.tfevents*"))
    assert "by number of keys" in capsys.readouterr().out
    # the configuration that a run has written can be run again, beside it
    assert analyse.main(["--config", str(folder / "config.yaml"), "--name", "tiny"]) == 0
    first, again = (np.loadtxt(folder.parent / f"version_{k}/tables/episodes.csv", str) for k in (0, 1))
    assert first.tolist() == again.tolist()


def test_command_line_takes_several_agents(agent):
    given = f"--study.agent=[{agent}, {SHIPPED}]"
    config = analyse.build_parser().parse_args(["--study", "studies.EvaluateAgent", given])
    assert config.study.init_args.agent == [agent, SHIPPED]
    config = analyse.build_parser().parse_args(["--study", "studies.EvaluateAgent", f"--study.agent={agent}"])
    assert config.study.init_args.agent == agent


def test_command_line_mistakes(agent, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--study", "studies.EvaluateAgent", "--study.init_args.agent"]
    with pytest.raises(SystemExit) as stop:
        analyse.main([*command, agent, "--study.init_args.num_level", "3"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "num_level" in message
    assert message.count("\n") == 1
    assert analyse.main([*command, "nowhere.safetensors"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "nowhere.safetensors" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "runs").exists()
