import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from datamodules import PlaySettings, ProbeDataModule
from datamodules.probe_batch import Examples
from environments import TEST_LEVELS, TRAINING_START, VALIDATION_LEVELS, EnvironmentSettings
from environments.heist import deconfound
from lightning_modules import LinearProbe
from networks import CustomCNN, DecisionTransformer, TrajectoryWindow, autocast, save_weights
from tests.probe_training import PlantedProbes

CONTROLS = (("pixels", "pixels"), ("pixels_pca", "pixels_pca"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("probes")
        save_weights(path / "agent.safetensors", CustomCNN(), {})
    return path


def make(folder: Path, kind: type[ProbeDataModule] = ProbeDataModule, **changes: Any) -> ProbeDataModule:
    arguments: dict[str, Any] = {
        "taps": ["conv1a", "conv4a", "fc1"],
        "num_frames": 40,
        "validation_frames": 16,
        "test_frames": 16,
        "max_features": 512,
        "play": PlaySettings(environments=4, steps=8, random_start=0),
        "cache_dir": str(folder / "cache"),
    }
    return kind(str(folder / "agent.safetensors"), **(arguments | changes))


def test_every_subject_once_with_the_pooled_activations_of_the_same_frames(folder: Path) -> None:
    data = make(folder)
    data.prepare_data()
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 8
    named = [(batch.subject.network, batch.subject.tap) for batch in batches]
    taps = ["conv1a", "conv4a", "fc1"]
    assert named == [
        *(("agent", tap) for tap in taps),
        ("pixels", "pixels"),
        ("pixels_pca", "pixels_pca"),
        *(("random_agent", tap) for tap in taps),
    ]
    frames = torch.cat([shard["frames"] for shard in data._shards["training"]])
    with torch.no_grad(), autocast("bf16"):
        output = data.agent(frames, record=["conv1a", "fc1"])
    shown = {name: batch.examples["training"] for name, batch in zip(named, batches, strict=True)}
    expected = functional.adaptive_avg_pool2d(output.activations["conv1a"].float(), 5)
    torch.testing.assert_close(shown["agent", "conv1a"].activations.float(), expected, atol=0.02, rtol=0.02)
    assert shown["agent", "fc1"].activations.shape == (40, 256)
    pixels = functional.adaptive_avg_pool2d(frames.permute(0, 3, 1, 2).float(), 13)
    torch.testing.assert_close(shown["pixels", "pixels"].activations.float(), pixels, atol=1.0, rtol=0.01)
    again = shown["pixels_pca", "pixels_pca"].activations
    assert torch.equal(again, shown["pixels", "pixels"].activations)
    assert not torch.equal(shown["random_agent", "fc1"].activations, shown["agent", "fc1"].activations)
    assert output.logits is not None
    agreed = shown["pixels", "pixels"].labels["action"] == output.logits.argmax(1).numpy()
    assert agreed.mean() > 0.9, "kernels round differently at other batch sizes"
    levels = {split: set(batches[0].examples[split].levels.tolist()) for split in ("training", "validation")}
    assert min(levels["training"]) >= TRAINING_START
    assert levels["validation"] <= set(VALIDATION_LEVELS)
    (test, *_) = list(data.test_dataloader())
    assert set(test.examples["test"].levels.tolist()) <= set(TEST_LEVELS)


def test_a_resumed_run_begins_at_the_next_subject(folder: Path) -> None:
    whole, data = list(make(folder).train_dataloader()), make(folder)
    iterator = iter(data.train_dataloader())
    for _ in range(4):
        next(iterator)
    resumed = make(folder)
    resumed.load_state_dict(data.state_dict())
    rest = list(resumed.train_dataloader())
    assert [batch.subject for batch in rest] == [batch.subject for batch in whole[4:]]
    for again, first in zip(rest, whole[4:], strict=True):
        a, b = again.examples["training"], first.examples["training"]
        assert torch.equal(a.activations, b.activations)
        assert (a.labels["action"] == b.labels["action"]).all()


@pytest.mark.parametrize(
    "changes", [{"taps": ["conv4a", "conv1a", "fc1"]}, {"num_frames": 48}, {"seed": 1}, {"precision": "bf16"}]
)
def test_a_run_does_not_go_on_with_other_frames_or_another_order(folder: Path, changes: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"states": deconfound, "precision": "fp32"}  # no precision decides these frames
    data = make(folder, **settings)
    data.done = 1
    state, other = data.state_dict(), make(folder, **(settings | changes))
    with pytest.raises(ValueError, match="on other frames, or on taps in another order"):
        other.load_state_dict(state)
    other.load_state_dict({**state, "done": 0})  # of a whole run, whose probes may be tested on anything
    other.load_state_dict({"done": 1})  # of before
    assert other.done == 1


def test_edited_states_feed_the_same_batches(folder: Path) -> None:
    data = make(folder, states=deconfound, controls=(), taps=["conv4a"])
    assert data.data_name == "deconfounded"
    data.prepare_data()
    (batch,) = list(data.train_dataloader())
    examples = batch.examples["training"]
    assert examples.activations.shape == (40, 32, 4, 4)
    assert len(set(examples.levels.tolist())) > 35
    assert (examples.labels["path_length"] >= 5).all()
    assert len(set(examples.labels["target"].tolist())) == 4


@pytest.mark.parametrize("states", [None, deconfound])
def test_a_decision_transformer_is_recorded_while_it_plays(tmp_path: Path, states: Any) -> None:
    """With its control on the same play; an edited state is an episode's first frame."""
    torch.manual_seed(0)
    network = DecisionTransformer(width=16, depth=1, heads=2, context=4)
    save_weights(tmp_path / "agent.safetensors", network, {})
    taps = ["resid0.observation", "resid1.observation"]
    data = make(tmp_path, taps=taps, states=states, precision="fp32")
    data.prepare_data()
    shown = {(b.subject.network, b.subject.tap): b.examples["training"] for b in data.train_dataloader()}
    assert set(shown) == {*(("agent", t) for t in taps), *CONTROLS, *(("random_agent", t) for t in taps)}
    frames = torch.cat([shard["frames"] for shard in data._shards["training"]])
    window = TrajectoryWindow(
        frames[:, None], torch.zeros(40, 1, dtype=torch.int64), torch.full((40, 1), 10.0),
        torch.zeros(40, 1, dtype=torch.int64), torch.ones(40, 1, dtype=torch.bool),
    )  # fmt: skip
    for name, one in (("agent", data.agent), ("random_agent", data.random_agent)):
        with torch.no_grad():
            alone = one(window, record=taps)
        for tap in taps:
            acts = shown[name, tap].activations.float()
            assert acts.shape == (40, 16)
            same = torch.isclose(acts, alone.activations[tap][:, 0], rtol=0.02, atol=0.02).all(1)
            assert same.all() if states else 4 <= same.sum() < 20, "of 8 steps of play the first"
        if name == "agent" and states:
            labels = shown["pixels", "pixels"].labels["action"]
            assert (labels == alone.logits[:, 0].argmax(1).numpy()).all()


class HeldCount(Callback):
    """Counts what a training step holds at most, as PyTorch hands it out."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.held = sum(examples.activations.nbytes for examples in batch.examples.values())
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profile.start()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.profile.stop()
        events = [each for each in self.profile.profiler.kineto_results.events() if each.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        self.held += max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("path_rows", [1_000, 25_000])
def test_the_memory_that_is_refused_is_what_a_fit_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path_rows: int
) -> None:
    def eigh(matrix: torch.Tensor) -> Any:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("does not converge")
        return plain(matrix)

    plain = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    frames: dict[Any, int] = {"training": 4_000, "validation": 400}

    class Drawn(ProbeDataModule):
        def prepare_data(self) -> None: ...

        def examples(self, network: str, splits: Any) -> dict[str, dict[str, Examples]]:
            drawn = {}
            for split in splits:
                count = frames[split]
                more = ("pursued", "action", "after_target", "wall_between", "steps_to_pickup", "straight_length")
                labels = PlantedProbes().labels(split) | dict.fromkeys(more, np.arange(count) % 2)
                drawn[split] = Examples(torch.randn(count, 16, 4, 4).bfloat16(), labels, torch.arange(count))
            return {"conv1a": drawn}

    monkeypatch.setattr("tests.probe_training.ROWS", frames)
    data = make(
        folder, Drawn, taps=["conv1a"], num_frames=4_000, validation_frames=400, max_features=256, controls=()
    )  # fmt: skip
    probe, count = LinearProbe(forms=("flat",), strengths=(0.1,), path_rows=path_rows), HeldCount()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=1, accelerator="cpu", callbacks=[count], **quiet).fit(probe, datamodule=data)
    assert data.bytes_held() == pytest.approx(count.held, rel=0.15)


def test_taps_by_default(folder: Path) -> None:
    names = [subject.tap for subject in make(folder, taps=None, controls=()).subjects]
    assert names == [
        *("conv1a", "pool1", "conv2a", "conv2b", "pool2", "conv3a", "pool3", "conv4a", "pool4", "fc1", "fc2"),
        "logits",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": EnvironmentSettings(start_level=0, num_levels=10)}, "held-out levels: begin at 100000"),
        ({"environment": EnvironmentSettings(distribution_mode="memory")}, "choose heist, easy or hard"),
        ({"environment": EnvironmentSettings(game="maze")}, "choose heist, easy or hard"),
        ({"test_frames": 0}, "test_frames is 0"),
        ({"taps": ["conv9"]}, "no tap 'conv9'"),
        ({"max_features": 8}, "raise max_features"),
        ({"num_frames": 10**9}, "lower num_frames"),
    ],
)
def test_mistakes_stop_before_anything_is_recorded(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(folder, **changes, cache_dir=str(folder / "other")).prepare_data()
    assert not (folder / "other").exists()
