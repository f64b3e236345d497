"""Two processes learn as one would from what both have played (gloo, on the CPU)."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from datamodules import RolloutBatch, RolloutDataModule
from datamodules.advantages import RewardNormaliser
from environments import State
from lightning_modules import PPOImpala
from networks import CustomCNN, load_agent, save_weights
from tests.lightning_modules.test_ppo_resume import differences
from tests.ppo_ranks import DISCOUNT, FRAMES, SIZES, SLOTS, WARM, random_rewards

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where both ranks have left what they did."""
    out = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(1)
    agent = CustomCNN()
    with torch.no_grad():
        agent.fc3.weight *= 100  # an opinion, as a clone has
    save_weights(out / "clone.safetensors", agent, {})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests/ppo_ranks.py"), str(out), str(out / "clone.safetensors")]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost"}
    processes = [
        subprocess.Popen(command, env={**shared, "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)})
        for rank in range(2)  # as Lightning itself would start them
    ]
    assert [process.wait(500) for process in processes] == [0, 0]
    return out


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def test_averaged_gradients_are_those_of_one_process_on_the_whole_minibatch(folder, ranks):
    batches = [RolloutBatch(**result["batch"]) for result in ranks]
    assert not torch.equal(batches[0].frames, batches[1].frames)
    module = PPOImpala(CustomCNN(), warm_start=str(folder / "clone.safetensors"), **WARM)
    module.reference = CustomCNN()
    module.load_state_dict(ranks[0]["before"])
    data = RolloutDataModule(**SIZES)
    data.env_steps = FRAMES
    module._trainer = SimpleNamespace(datamodule=data)
    module.training_step(RolloutBatch(*(torch.cat(pair) for pair in zip(*batches, strict=True))), 0).backward()
    for name, parameter in module.agent.named_parameters():
        for result in ranks:
            torch.testing.assert_close(result["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)
    for name in ("conv1a", "fc3", "value_fc"):
        assert module.agent.get_submodule(name).weight.grad.abs().max() > 1e-3


def test_ranks_stay_alike(ranks):
    one, other = (result["whole"] for result in ranks)
    assert differences(one["weights"], other["weights"]) == []
    assert differences(one["optimiser"], other["optimiser"]) == []
    assert ranks[0]["metrics"] == ranks[1]["metrics"]
    assert ranks[0]["metrics"]["env_steps"] == 2 * FRAMES
    assert "held_out/return" in ranks[0]["metrics"]
    assert all(ranks[0]["metrics"][f"ppo/{name}"] != 0 for name in ("policy_loss", "value_loss", "reference_kl"))


def test_ranks_play_other_levels_with_other_noise(ranks):
    assert not set(ranks[0]["levels"]) & set(ranks[1]["levels"])
    states = [result["whole"]["player"] for result in ranks]
    assert not torch.equal(states[0]["generator"], states[1]["generator"])
    alone = RolloutDataModule(**SIZES | {"num_environments": 2})
    alone.setup("fit")  # the first rank plays what a single process would
    first = {State.from_bytes(state).fields["current_level_seed"] for state in alone.player.environments.get_states()}
    assert first == set(ranks[0]["levels"])


def test_advantages_are_normalised_over_all_ranks(ranks):
    raw = torch.cat([result["raw_advantages"] for result in ranks])
    expected = (raw - raw.mean()) / raw.std()
    torch.testing.assert_close(torch.cat([result["advantages"] for result in ranks]), expected, atol=1e-4, rtol=1e-4)
    assert abs(ranks[0]["advantages"].mean()) > 1e-3


def test_rewards_have_the_scale_of_all_ranks(ranks):
    alone = RewardNormaliser(2 * SLOTS, DISCOUNT)
    for rollout in range(2):
        pairs = zip(random_rewards(2 * rollout), random_rewards(2 * rollout + 1), strict=True)
        scaled = alone(*(torch.cat(pair, dim=1) for pair in pairs))
        found = torch.cat([result["scaled"][rollout] for result in ranks], dim=1)
        torch.testing.assert_close(found, scaled, atol=1e-6, rtol=1e-6)


def test_stopped_by_sigterm_to_one_rank_both_go_on_bit_for_bit(folder, ranks):
    assert all(result["stopped"] for result in ranks)
    saved = torch.load(folder / "part/last.ckpt", weights_only=True)
    assert len(saved["RolloutDataModule"]["ranks"]) == 2
    for result in ranks:
        assert differences(result["whole"], result["resumed"]) == []
    agents = [load_agent(folder / run / "agent.safetensors") for run in ("whole", "part")]
    assert agents[0].metadata["env_steps"] == agents[1].metadata["env_steps"] == 2 * FRAMES


def test_another_number_of_processes_is_refused(folder):
    trainer = Trainer(accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False)
    module = PPOImpala(CustomCNN(), warm_start=str(folder / "clone.safetensors"), **WARM)
    with pytest.raises(ValueError, match="processes 2 there, 1 here"):
        trainer.fit(module, datamodule=RolloutDataModule(**SIZES), ckpt_path=folder / "part/last.ckpt")


@pytest.mark.parametrize("numbers", [{"num_environments": 5}, {"num_steps": 1, "num_minibatches": 4}])
def test_what_cannot_be_split_is_refused(numbers, monkeypatch):
    monkeypatch.setattr("datamodules.rollouts.world_size", lambda: 2)
    data = RolloutDataModule(**{"num_environments": 4, "num_steps": 4, "num_minibatches": 1, **numbers})
    with pytest.raises(ValueError, match=r"trainer\.devices"):
        data.setup("fit")
