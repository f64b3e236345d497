from types import SimpleNamespace

import pytest

from callbacks import AgentExport
from lightning_modules import ConvSAE
from networks import CustomCNN, load_agent
from tests.sae_training import PlantedData, small_trainer


class Module:
    def __init__(self):
        self.agent = CustomCNN()
        self.frames = 0

    def agent_metadata(self):
        return {"env_steps": self.frames, "training": "none"}


def epochs(export, module, folder, count, frames_each):
    for epoch in range(count):
        module.frames += frames_each
        export.on_train_epoch_end(
            SimpleNamespace(log_dir=str(folder), current_epoch=epoch, is_global_zero=True), module
        )


def test_a_ladder_of_agents_is_kept(tmp_path):
    export, module = AgentExport(every_n_epochs=1000, keep_from=250), Module()
    epochs(export, module, tmp_path, 12, 100)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    # the first epochs at or above 250, 500 and 1000 frames
    assert kept == ["agent_0000000300.safetensors", "agent_0000000500.safetensors", "agent_0000001000.safetensors"]
    assert load_agent(tmp_path / "checkpoints" / kept[0]).metadata["env_steps"] == 300
    assert not (tmp_path / "agent.safetensors").exists()

    resumed = AgentExport(every_n_epochs=1000, keep_from=250)
    resumed.load_state_dict(export.state_dict())
    epochs(resumed, module, tmp_path / "resumed", 9, 100)
    kept = [path.name for path in (tmp_path / "resumed/checkpoints").iterdir()]
    assert kept == ["agent_0000002000.safetensors"]


def test_the_newest_agent_has_one_name(tmp_path):
    export, module = AgentExport(every_n_epochs=2), Module()
    epochs(export, module, tmp_path, 3, 100)
    assert load_agent(tmp_path / "agent.safetensors").metadata["env_steps"] == 200
    export.on_train_end(SimpleNamespace(log_dir=str(tmp_path), current_epoch=3, is_global_zero=True), module)
    agent = load_agent(tmp_path / "agent.safetensors")
    assert agent.metadata["env_steps"] == 300
    assert agent.metadata["command"].startswith("python ")
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_are_not_finite_do_not_replace_the_last_good_ones(tmp_path):
    export, module = AgentExport(every_n_epochs=1, keep_from=100), Module()
    epochs(export, module, tmp_path, 1, 100)
    module.agent.fc1.weight.data[0, 0] = float("nan")
    epochs(export, module, tmp_path, 1, 100)
    assert load_agent(tmp_path / "agent.safetensors").metadata["env_steps"] == 100
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match="keep_from 0"):
        AgentExport(keep_from=0)


def test_a_module_that_trains_no_agent_is_refused_before_training():
    AgentExport().on_fit_start(SimpleNamespace(), Module())
    with pytest.raises(ValueError, match=r"ConvSAE trains none: take it out of trainer\.callbacks"):
        small_trainer(1, callbacks=[AgentExport()]).fit(
            ConvSAE("planted", expansion=2, compile=False), datamodule=PlantedData()
        )
