import dataclasses
import hashlib
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules import FeatureTap, TrajectoryBatch, TrajectoryDataModule, TrajectorySource
from datamodules import trajectory_recorder as recorder_module
from datamodules.activation_loaders import Position
from datamodules.trajectory_loaders import OrderedTrajectoryLoader, TrajectoryLoader
from datamodules.trajectory_recorder import TrajectoryRecorder
from environments import EnvironmentSettings
from networks import CustomCNN, load_agent, save_weights

SOURCES = [
    TrajectorySource("oracle", "oracle", 0.5),
    TrajectorySource("noisy", "oracle", 0.25, epsilon=0.1, hold=4),
    TrajectorySource("random", "random", 0.25, hold=4),
]


def data(folder: Path, **changes: Any) -> TrajectoryDataModule:
    arguments = {
        "sources": SOURCES,
        "environment": EnvironmentSettings(num_threads=0),
        "num_frames": 1_600,
        "validation_frames": 400,
        "context": 12,
        "batch_size": 8,
        "validation_batch_size": 8,
        "max_steps": 80,
        "cache_dir": str(folder),
    }
    return TrajectoryDataModule(**(arguments | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches that are recorded once for all tests."""
    return tmp_path_factory.mktemp("trajectories")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("agent") / "agent.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(path, CustomCNN(), {})
    return str(path)


def same(one: TrajectoryBatch, other: TrajectoryBatch) -> bool:
    tensors = [[*batch.window, *batch.labels.values()] for batch in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def test_splits_have_levels_of_their_own(folder: Path) -> None:
    made = data(folder)
    made.prepare_data()
    levels = {split: set(made.store(split).level.tolist()) for split in ("train", "validation")}
    assert min(levels["train"]) >= 100_000
    assert levels["validation"] <= set(range(50_000))
    assert all(len(found) > 8 for found in levels.values())


def test_shares_are_those_of_frames_and_counts_tell_who_solved(folder: Path) -> None:
    made = data(folder)
    oracle, noisy, random = made.counts("train")
    assert [oracle.name, noisy.name, random.name] == ["oracle", "noisy", "random"]
    assert abs(oracle.frames - 800) < 100
    assert abs(noisy.frames - 400) < 100
    assert abs(random.frames - 400) < 100
    assert oracle.solved > 0.9 * oracle.episodes
    assert random.solved < 0.6 * random.episodes
    assert oracle.cut + oracle.solved == oracle.episodes
    episodes = oracle.episodes + noisy.episodes + random.episodes
    assert made.solved_share("train") == pytest.approx((oracle.solved + noisy.solved + random.solved) / episodes)
    batch = next(iter(made.val_dataloader()))
    assert set(batch.labels["source"][batch.window.mask].tolist()) <= {0, 1, 2}


def test_an_interrupted_recording_resumes_to_the_identical_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "BLOCK_FRAMES", 300)
    changes: dict[str, Any] = {"sources": SOURCES[:2], "num_frames": 900, "validation_frames": 200}
    whole = data(tmp_path / "whole", **changes)
    whole.prepare_data()
    block = TrajectoryRecorder.block

    def interrupted(self: TrajectoryRecorder, index: int, *arguments: Any) -> Any:
        if index == 1 and self.source.name == "oracle":
            raise KeyboardInterrupt
        return block(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryRecorder, "block", interrupted)
        patch.setattr(TrajectoryRecorder, "forks", False)  # the keys stop this process
        with pytest.raises(KeyboardInterrupt):
            data(tmp_path / "resumed", **changes).prepare_data()
    assert len(list((tmp_path / "resumed").rglob("shard-*.safetensors"))) == 1
    resumed = data(tmp_path / "resumed", **changes)
    resumed.prepare_data()
    files = {
        name: sorted((path.relative_to(tmp_path / name), path.read_bytes()) for path in shards)
        for name in ("whole", "resumed")
        if (shards := list((tmp_path / name).rglob("shard-*.safetensors")))
    }
    assert len(files["whole"]) == 2 + 1 + 2
    assert files["whole"] == files["resumed"]
    batches = [list(made.train_dataloader()) for made in (whole, resumed)]
    assert all(same(*pair) for pair in zip(*batches, strict=True))


def test_a_flipped_byte_is_found_and_named(folder: Path, tmp_path: Path) -> None:
    data(folder).prepare_data()
    shutil.copytree(folder, tmp_path / "copy")
    shard = next((tmp_path / "copy").rglob("train-noisy*/shard-00000-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000-\d+\.safetensors .*checksum.*Delete the file"):
        data(tmp_path / "copy").prepare_data()


def test_a_disk_too_small_is_refused_before_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**8))
    with pytest.raises(ValueError, match=r"train-oracle.*has 0\.10 GB free: lower num_frames"):
        data(tmp_path).prepare_data()
    assert not list(tmp_path.rglob("shard-*"))


def loader(made: TrajectoryDataModule, position: Position | None = None, **changes: Any) -> TrajectoryLoader:
    return TrajectoryLoader(made.store("train"), 12, 8, **({"seed": 3, "position": position or Position()} | changes))


def test_order_depends_on_seed_and_epoch_alone(folder: Path) -> None:
    made = data(folder)
    position = Position()
    first, second = list(loader(made, position)), list(loader(made, position))
    assert position == Position(epoch=2)
    assert len(first) == len(loader(made)) > 10
    assert all(same(*pair) for pair in zip(first, loader(made), strict=True))
    assert not any(same(*pair) for pair in zip(first, second, strict=True))
    assert not any(same(*pair) for pair in zip(first, loader(made, seed=4), strict=True))


def test_workers_read_the_same_batches(folder: Path) -> None:
    made = data(folder)
    alone = [TrajectoryBatch(*batch) for batch in loader(made)]
    position = Position()
    shared = loader(made, position, num_workers=2)
    for place, batch in enumerate(shared):
        assert same(batch, alone[place])
        assert position.batch == (place + 1) % len(alone)  # what was handed out, not what workers have fetched


def test_an_epoch_goes_on_in_its_middle(folder: Path) -> None:
    made = data(folder)
    whole = list(made.train_dataloader())
    fresh = data(folder)
    handed = iter(fresh.train_dataloader())
    for _ in range(5):
        next(handed)
    state = fresh.state_dict()
    resumed = data(folder)
    resumed.load_state_dict(state)
    rest = list(resumed.train_dataloader())
    assert len(rest) == len(whole) - 5
    assert all(same(*pair) for pair in zip(rest, whole[5:], strict=True))
    old = data(folder)
    old.load_state_dict({name: state[name] for name in ("epoch", "batch", "batch_size", "world_size")})
    assert len(list(old.train_dataloader())) == len(whole) - 5


@pytest.mark.parametrize("changes", [{"batch_size": 4}, {"context": 20}, {"num_frames": 600}, {"seed": 1}])
def test_a_place_among_other_batches_means_nothing(folder: Path, changes: dict[str, Any]) -> None:
    made = data(folder)
    late = len(made.train_dataloader()) - 1
    other = data(folder, **changes)
    other.load_state_dict(made.state_dict() | {"epoch": 2, "batch": late})
    assert len(list(other.train_dataloader())) == len(other.train_dataloader()) > 1
    assert other.state_dict()["epoch"] == 3


def test_ranks_share_out_the_windows(folder: Path) -> None:
    made = data(folder)
    ranks = [list(loader(made, rank=rank, world=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == len(loader(made)) // 2
    whole = list(loader(made))
    assert all(same(*pair) for pair in zip([b for pair in zip(*ranks, strict=True) for b in pair], whole, strict=False))
    ordered = [OrderedTrajectoryLoader(made.store("validation"), 12, 8, rank=rank, world=2) for rank in range(2)]
    every = OrderedTrajectoryLoader(made.store("validation"), 12, 8)
    assert sum(map(len, ordered)) == len(every)
    seen = [int(batch.window.mask.sum()) for part in ordered for batch in part]
    assert sum(seen) == made.store("validation").steps.sum()
    with pytest.raises(ValueError, match=r"make 1 batches of 1000, fewer than the 2 processes: raise"):
        OrderedTrajectoryLoader(made.store("validation"), 12, 1000, rank=1, world=2)


def test_held_out_windows_are_the_same_every_time(folder: Path) -> None:
    one, other = data(folder), data(folder, seed=5, num_frames=400)
    pairs = list(zip(one.val_dataloader(), other.val_dataloader(), strict=True))
    assert pairs
    assert all(same(*pair) for pair in pairs)


def test_features_are_what_the_agent_makes_of_the_frames(folder: Path, weights: str) -> None:
    made = data(folder, features=FeatureTap(weights, "conv4a"), precision="fp32")
    assert made.feature_shape == (32, 8, 8)
    batch = next(iter(made.val_dataloader()))
    assert batch.features is not None
    agent = load_agent(weights)
    with torch.no_grad():
        acts = agent(batch.window.frames.flatten(0, 1), record=("conv4a",), outputs=False).activations["conv4a"]
    expected = acts.unflatten(0, batch.window.mask.shape)
    mask = batch.window.mask
    torch.testing.assert_close(batch.features[mask].float(), expected[mask], rtol=1e-3, atol=1e-3)
    assert expected[mask].abs().max() > 0.1
    blind = data(folder, features=FeatureTap(weights, "conv4a"), precision="fp32", frames=False)
    without = next(iter(blind.val_dataloader()))
    assert without.features is not None
    assert torch.equal(without.features, batch.features)
    assert without.window.frames.numel() == 0


def test_features_of_other_frames_are_refused(folder: Path, tmp_path: Path, weights: str) -> None:
    made = data(tmp_path, features=FeatureTap(weights, "fc1"), sources=SOURCES[:1], num_frames=200)
    made.store("train")
    shard = next(tmp_path.glob("train-oracle-features*/shard-00000-*.safetensors"))
    cache = made._feature_caches["train"][0]
    from safetensors.torch import load_file, save_file

    rows = load_file(shard)
    rows["frames_hash"] = rows["frames_hash"] ^ 1
    partial = shard.with_suffix(".partial")
    save_file(rows, partial)
    known = {"bytes": partial.stat().st_size, "sha256": hashlib.sha256(partial.read_bytes()).hexdigest()}
    cache._enter(shard, known)
    again = data(tmp_path, features=FeatureTap(weights, "fc1"), sources=SOURCES[:1], num_frames=200)
    with pytest.raises(ValueError, match="recorded anew: delete that folder"):
        again.store("train")


def test_an_agent_plays_its_share(folder: Path, weights: str) -> None:
    sources = [TrajectorySource("agent", weights, temperature=2.0)]
    made = data(folder, sources=sources, num_frames=200)
    assert made.counts("train")[0].frames >= 140
    with pytest.raises(ValueError, match=r"sources or features: there is no file nowhere\.safetensors"):
        data(folder, sources=[TrajectorySource("agent", "nowhere.safetensors")]).prepare_data()


class Sum(L.LightningModule):
    """Learns nothing, and remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[TrajectoryBatch] = []

    def training_step(self, batch: TrajectoryBatch) -> torch.Tensor:
        self.seen.append(batch)
        return self.weight * batch.window.returns_to_go.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_training_resumes_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    def trainer(steps: int) -> L.Trainer:
        return L.Trainer(
            max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
        )

    whole, first, rest = Sum(), Sum(), Sum()
    count = len(data(folder).train_dataloader()) + 4
    trainer(count).fit(whole, data(folder))
    one = trainer(6)
    one.fit(first, data(folder))
    one.save_checkpoint(tmp_path / "six.ckpt")
    trainer(count).fit(rest, data(folder), ckpt_path=str(tmp_path / "six.ckpt"))
    seen = first.seen + rest.seen
    assert len(seen) == len(whole.seen) == count
    assert all(same(*pair) for pair in zip(seen, whole.seen, strict=True))


def test_a_configuration_makes_it(folder: Path, weights: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(TrajectoryDataModule, "data")
    config = {
        "class_path": "datamodules.TrajectoryDataModule",
        "init_args": {
            "sources": [
                {"name": "oracle", "player": "oracle", "share": 0.7, "epsilon": 0.1},
                {"name": "agent", "player": weights, "share": 0.3, "temperature": 0.5},
            ],
            "labels": ["direction", "target"],
            "features": {"agent": weights, "tap": "fc1"},
        },
    }
    made = parser.instantiate(parser.parse_object({"data": config})).data
    assert made.sources[1] == TrajectorySource("agent", weights, 0.3, temperature=0.5)
    assert made.features == FeatureTap(weights, "fc1")
    assert made.labels == ("direction", "target")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sources": []}, "give at least one that plays"),
        ({"sources": [SOURCES[0], SOURCES[0]]}, "name of its own"),
        ({"environment": EnvironmentSettings(game="maze")}, "choose heist"),
        ({"environment": EnvironmentSettings(start_level=5, num_levels=10)}, "held-out levels"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"context": 0}, "context is 0"),
        ({"labels": ["colour"]}, "no label 'colour'"),
        ({"discount": 0.0}, "discount 0"),
        ({"batch_size": 10_000}, "too few for a batch of 10000"),
    ],
)
def test_what_cannot_be_meant_is_named(folder: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        data(folder, **changes).train_dataloader()


def test_a_tap_that_is_none_is_named(folder: Path, weights: str) -> None:
    with pytest.raises(ValueError, match="no tap 'fc9'"):
        data(folder, features=FeatureTap(weights, "fc9")).prepare_data()


def test_shares_record_nothing_anew_and_more_frames_only_what_is_missing(folder: Path) -> None:
    made = data(folder)
    doubled = [dataclasses.replace(source, share=2 * source.share) for source in SOURCES]
    names = [cache.folder for cache in made._caches["train"]]
    assert [cache.folder for cache in data(folder, sources=doubled)._caches["train"]] == names
    more = data(folder, num_frames=3_200)._caches["train"]
    assert [cache.folder for cache in more] == names
    assert not any(cache.missing() for cache in made._caches["train"])
    assert all(cache.missing() for cache in more)
