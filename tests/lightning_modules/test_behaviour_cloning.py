from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import ImitationDataModule
from datamodules.imitation import ImitationBatch
from environments import EnvironmentSettings
from lightning_modules import BehaviourCloning
from networks import CustomCNN, ResidualImpala, save_weights
from networks.origin import how_trained


class OneBatch(ImitationDataModule):
    """The same few frames again and again."""

    def train_dataloader(self) -> DataLoader:
        first = next(self.batches())
        return DataLoader([first] * 60, batch_size=None)


def test_it_learns_a_few_frames_by_heart():
    L.seed_everything(0, verbose=False)
    data = OneBatch(
        EnvironmentSettings(num_threads=0), num_environments=16, student_environments=4, steps_per_epoch=1,
        batch_size=16, precision="fp32",
    )  # fmt: skip
    module = BehaviourCloning(compile=False)
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=20,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    targets = next(iter(trainer.train_dataloader)).targets
    least = torch.special.entr(targets).sum(-1).mean()  # the cross-entropy of a perfect student
    assert least < trainer.callback_metrics["clone/loss"] < least + 0.1
    assert trainer.callback_metrics["env_steps"] == data.env_steps
    assert module.agent_metadata()["environment"]["game"] == "heist"


def test_nothing_may_be_logged():
    module = BehaviourCloning(compile=False)
    module._trainer = SimpleNamespace(global_step=0, log_every_n_steps=0)
    batch = ImitationBatch(torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.full((2, 15), 1 / 15))
    assert module.training_step(batch, 0).isfinite()


def test_all_that_learns_has_a_part_in_the_loss():
    """Several processes wait for every gradient."""
    module = BehaviourCloning(compile=False)
    logits = module.agent(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).logits
    torch.nn.functional.cross_entropy(logits, torch.full((2, 15), 1 / 15)).backward()
    learns = {name for name, parameter in module.agent.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, parameter in module.agent.named_parameters() if parameter.grad is not None}
    assert "value_fc.weight" not in learns


def test_it_goes_on_from_a_saved_agent(tmp_path):
    torch.manual_seed(1)
    saved = CustomCNN()
    save_weights(tmp_path / "agent.safetensors", saved, {})
    module = BehaviourCloning(weights=str(tmp_path / "agent.safetensors"), compile=False)
    assert torch.equal(module.agent.fc1.weight, saved.fc1.weight)


def test_a_saved_agent_of_another_architecture_is_refused_by_name(tmp_path):
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    with pytest.raises(ValueError, match="is a CustomCNN, the agent to train a ResidualImpala: change"):
        BehaviourCloning(ResidualImpala(), weights=str(tmp_path / "agent.safetensors"))


@pytest.mark.parametrize("begun", [False, True])
def test_what_is_saved_says_whether_it_began_as_another_agent(tmp_path, begun):
    path = tmp_path / "agent.safetensors"
    save_weights(path, CustomCNN(), {"training": "imitation"})
    module = BehaviourCloning(weights=str(path) if begun else None, compile=False)
    module._trainer = SimpleNamespace(datamodule=ImitationDataModule())
    said = module.agent_metadata()
    assert said["warm_started"] is begun
    assert how_trained(said) == said["training"] + (", begun as imitation" if begun else "")
