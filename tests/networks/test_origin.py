import warnings

import pytest
import torch

from networks import CustomCNN, load_agent, save_weights
from networks.origin import frames_trained, how_trained, parent, warn_of_another_game


def test_a_way_of_three_trainings_is_told_and_its_frames_add_up(tmp_path):
    save_weights(tmp_path / "clone.safetensors", CustomCNN(), {"training": "behaviour cloning", "env_steps": 30})
    clone = load_agent(tmp_path / "clone.safetensors")
    known = {"training": "PPO", "env_steps": 12, "parent": parent(clone.weights_hash, clone.metadata)}
    save_weights(tmp_path / "ppo.safetensors", CustomCNN(), known)
    ppo = load_agent(tmp_path / "ppo.safetensors")
    last = {"training": "PPO", "env_steps": 5, "parent": parent(ppo.weights_hash, ppo.metadata)}
    assert how_trained(last) == "PPO, begun as behaviour cloning", "two stages of the same training are one"
    assert frames_trained(last) == 47
    assert last["parent"]["parent"]["hash"] == clone.weights_hash
    assert not torch.equal(clone.conv1a.weight, ppo.conv1a.weight)


def test_scratch_and_warm_starts_of_files_without_a_parent_are_told_apart():
    assert how_trained({"training": "PPO", "warm_started": False}) == "PPO from scratch"
    assert how_trained({"training": "PPO", "warm_started": True}) == "PPO, begun as another agent"
    assert how_trained({}) == "unknown"
    assert frames_trained({}) is None
    assert frames_trained({"env_steps": 3, "parent": {"hash": "1"}}) is None


def test_another_game_than_that_of_the_training_is_warned_of():
    trained = {"environment": {"game": "coinrun", "distribution_mode": "easy"}}
    with pytest.warns(UserWarning, match="trained on coinrun and plays heist"):
        warn_of_another_game(trained, "heist", "easy")
    with pytest.warns(UserWarning, match="trained on coinrun, easy, and plays hard levels"):
        warn_of_another_game(trained, "coinrun", "hard")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_another_game(trained, "coinrun", "easy")
        warn_of_another_game({"environment": {"game": "coinrun"}}, "coinrun", "hard")
        warn_of_another_game({}, "heist", "easy")  # published weights do not say
