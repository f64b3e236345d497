import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules import ActivationBatch, ActivationDataModule, PlaySettings
from environments import TRAINING_START, VALIDATION_LEVELS, EnvironmentSettings
from lightning_modules import ConvSAE
from networks import CustomCNN, save_weights

PLAY = PlaySettings(environments=4, steps=8, random_start=4)


@pytest.fixture(scope="module")
def agent_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("agent") / "agent.safetensors"
        save_weights(path, CustomCNN(), {})
    return str(path)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


def make(agent_path: str, cache_dir: str, **changes: Any) -> ActivationDataModule:
    arguments: dict[str, Any] = {
        "taps": ["conv4a"],
        "num_frames": 64,
        "validation_frames": 40,
        "batch_size": 256,
        "validation_batch_size": 24,
        "play": PLAY,
        "precision": "bf16",
        "cache_dir": cache_dir,
    }
    return ActivationDataModule(agent_path, **(arguments | changes))


def test_what_learns_is_asked_before_anything_is_recorded(agent_path: str, tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    for module, said in (
        (ConvSAE("conv3a"), "tap is 'conv3a', but the data hold conv4a"),
        (ConvSAE("conv4a", kernel_size=3), "hold single positions of conv4a"),
        (ConvSAE("conv4a", in_channels=16), "in_channels is 16, but conv4a of this agent has 32"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer.fit(module, datamodule=make(agent_path, str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def digest(batch: ActivationBatch) -> str:
    return hashlib.sha256(batch.activations["conv4a"].view(torch.uint8).numpy().tobytes()).hexdigest()


class Watcher(LightningModule):
    """Trains one number on nothing and remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[str] = []
        self.validated: list[ActivationBatch] = []
        self.types: set[torch.dtype] = set()

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> torch.Tensor:
        self.trained.append(digest(batch))
        self.types.add(batch.activations["conv4a"].dtype)
        assert len(batch) == 256
        assert batch.activations["conv4a"].shape == (256, 32)
        assert int(batch.levels.min()) >= TRAINING_START
        return self.weight.sum() + batch.activations["conv4a"].float().mean()

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, epochs: int = 1, **changes: Any) -> Trainer:
    arguments: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    arguments |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(max_epochs=epochs, default_root_dir=folder, **(arguments | changes))


@pytest.mark.parametrize("source", ["cache", "stream"])
def test_both_sources_feed_a_trainer(agent_path: str, cache_dir: str, tmp_path: Path, source: str) -> None:
    module, data = Watcher(), make(agent_path, cache_dir, source=source)
    trainer(tmp_path).fit(module, datamodule=data)
    assert len(module.trained) == 64 * 64 // 256
    assert module.types == {torch.bfloat16}
    assert [len(batch) for batch in module.validated] == [24, 8, 8]
    for batch in module.validated:
        assert batch.activations["conv4a"].shape == (len(batch), 32, 8, 8)
        assert batch.frames is not None
        assert batch.frames.shape == (len(batch), 64, 64, 3)
        assert batch.inside is not None
        assert batch.inside["conv4a"].shape == (len(batch), 8, 8)
        assert set(batch.levels.tolist()) <= set(VALIDATION_LEVELS)
    mean, std = data.statistics("conv4a")
    assert mean.shape == (32,)
    assert std.shape == ()
    assert std > 0


def test_the_stream_s_first_block_is_the_cache_s_first_shard(agent_path: str, cache_dir: str) -> None:
    cached = make(agent_path, cache_dir)
    cached.prepare_data()
    streamed = make(agent_path, cache_dir, source="stream")
    shard, block = cached._cached_rows[0], streamed._first_block
    streamed.teardown("fit")
    assert all(torch.equal(shard[name], block[name]) for name in block)


def test_validation_data_do_not_depend_on_the_seed(agent_path: str, cache_dir: str) -> None:
    one, other = (make(agent_path, cache_dir, seed=seed) for seed in (0, 1))
    assert one._validation_cache.folder == other._validation_cache.folder
    assert one._training_cache.folder != other._training_cache.folder


def test_a_checkpoint_within_an_epoch_goes_on_with_the_very_next_batch(
    agent_path: str, cache_dir: str, tmp_path: Path
) -> None:
    whole = Watcher()
    trainer(tmp_path, epochs=2).fit(whole, datamodule=make(agent_path, cache_dir))
    first = Watcher()
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    trainer(tmp_path, max_steps=7, enable_checkpointing=True, callbacks=[saving]).fit(
        first, datamodule=make(agent_path, cache_dir)
    )
    second = Watcher()
    trainer(tmp_path, epochs=2).fit(
        second, datamodule=make(agent_path, cache_dir), ckpt_path=tmp_path / "step=6.ckpt", weights_only=True
    )
    assert len(whole.trained) == 32
    assert second.trained == whole.trained[6:]
    assert len(set(whole.trained)) == 32


@pytest.mark.parametrize("size", ["batch_size", "num_frames", "world_size"])
def test_an_epoch_of_other_batches_begins_again(agent_path: str, cache_dir: str, size: str) -> None:
    data = make(agent_path, cache_dir)
    state = data.state_dict() | {"epoch": 3, "batch": 5, "block": 9}
    data.load_state_dict(state)
    assert vars(data._position) == {"epoch": 3, "batch": 5, "block": 9}
    data.load_state_dict(state | {size: state[size] + 1})
    assert vars(data._position) == {"epoch": 3, "batch": 0, "block": 9}


@pytest.mark.parametrize("changes", [{"seed": 1}, {"positions_per_frame": 2}, {"source": "stream"}])
def test_an_epoch_of_other_rows_begins_again(agent_path: str, cache_dir: str, changes: dict[str, Any]) -> None:
    state = make(agent_path, cache_dir).state_dict() | {"epoch": 3, "batch": 5}
    data = make(agent_path, cache_dir, **changes)
    data.load_state_dict(state)
    assert (data._position.epoch, data._position.batch) == (3, 0)
    del state["source"], state["recording"]  # a checkpoint of before
    data.load_state_dict(state)
    assert data._position.batch == 5


def test_training_maps_with_frames_and_labels(agent_path: str, cache_dir: str) -> None:
    data = make(
        agent_path, cache_dir, positions_per_frame=None, frames=True, labels=True, batch_size=8, taps=["conv3a", "fc1"]
    )
    data.prepare_data()
    batch = next(iter(data.train_dataloader()))
    assert data.activation_shapes == {"conv3a": (32, 16, 16), "fc1": (256,)}
    assert batch.activations["conv3a"].shape == (8, 32, 16, 16)
    assert batch.activations["fc1"].shape == (8, 256)
    assert batch.frames is not None
    assert batch.labels is not None
    assert torch.equal(batch.labels["level"].int(), batch.levels)


def test_cache_and_stream_yield_the_same_kind_of_batch(agent_path: str, cache_dir: str) -> None:
    """What an autoencoder learns from a cache, a probe can learn from a stream, labels and frames included."""
    kinds = []
    for source in ("cache", "stream"):
        changes: dict[str, Any] = {"positions_per_frame": None, "frames": True, "labels": True, "batch_size": 8}
        data = make(agent_path, cache_dir, source=source, **changes)
        data.prepare_data()
        batch = next(iter(data.train_dataloader()))
        groups = [batch.activations, batch.labels, batch.inside or {}, {"frames": batch.frames, "levels": batch.levels}]
        kinds.append([{name: (c.dtype, c.shape, c.stride()) for name, c in (group or {}).items()} for group in groups])
        data.teardown("fit")
    assert kinds[0] == kinds[1]
    assert "target" in kinds[0][1]


def test_a_damaged_shard_stops_before_training(agent_path: str, tmp_path: Path) -> None:
    make(agent_path, str(tmp_path / "cache")).prepare_data()
    shard = next((tmp_path / "cache").glob("training-*/shard-00001-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    module, data = Watcher(), make(agent_path, str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"shard-00001-\d+\.safetensors"):
        trainer(tmp_path).fit(module, datamodule=data)
    assert module.trained == []


def test_validation_data_too_few_for_all_ranks_stop_before_any_work(
    agent_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(agent_path, str(tmp_path / "cache"))  # 40 frames in shards of 32 and 8, batches of 24: three
    monkeypatch.setattr(data, "_ranks", lambda: {"rank": 0, "world": 3})
    data.setup("fit")
    monkeypatch.setattr(data, "_ranks", lambda: {"rank": 0, "world": 4})
    for begin in (data.prepare_data, lambda: data.setup("fit")):
        with pytest.raises(ValueError, match="lower validation_batch_size"):
            begin()
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


def test_mistakes_are_named(agent_path: str, cache_dir: str, tmp_path: Path) -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"environment": EnvironmentSettings(start_level=0, num_levels=10)}, "held-out levels: begin at 100000"),
        ({"taps": []}, "taps is empty"),
        ({"positions_per_frame": 65}, "choose 1 to 64, or null"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"source": "disk"}, "source 'disk' is unknown"),
    ]
    for changes, message in mistakes:
        with pytest.raises(ValueError, match=message):
            make(agent_path, cache_dir, **changes)
    missing = make(str(tmp_path / "nobody.safetensors"), cache_dir)
    with pytest.raises(ValueError, match=r"agent: there is no file .*nobody"):
        missing.prepare_data()
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        make(agent_path, cache_dir, taps=["conv9"]).prepare_data()
    with pytest.raises(ValueError, match="frames go with whole maps"):
        make(agent_path, cache_dir, frames=True).prepare_data()
    with pytest.raises(ValueError, match=r"tap 'fc1' is not recorded: add it"):
        make(agent_path, cache_dir).statistics("fc1")
