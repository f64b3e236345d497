"""The callback only calls `interpretability`: here is tested when, on what, and what it leaves alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks import FeatureVisualisation, evolving_images, visualised
from datamodules import ActivationBatch
from environments import EnvironmentSettings
from interpretability.image_objectives import Unit
from interpretability.optimised_images import OptimisationSettings, OptimisedImages
from networks import CustomCNN, SparseAutoencoder

QUICK = OptimisationSettings(steps=2, starts=2)


class TinyModule(LightningModule):
    """Draws noise in each step, so that its weights show whether a generator was moved."""

    def training_step(self, batch: ActivationBatch) -> Tensor:
        noise = torch.rand(1) + random.random() + float(np.random.rand())  # noqa: NPY002
        return sum(parameter.square().sum() for parameter in self.parameters()) * noise.squeeze()

    def validation_step(self, batch: object, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class TinySAE(TinyModule):
    tap = "conv4a"

    def __init__(self) -> None:
        super().__init__()
        self.sae = SparseAutoencoder(32, 2)


class TinyAgent(TinyModule):
    def __init__(self) -> None:
        super().__init__()
        self.agent = CustomCNN()
        self.agent.fc2.eval()  # modes may be mixed


class TinyData(LightningDataModule):
    environment = EnvironmentSettings()
    precision = "fp32"
    cache_dir = ""  # of colours: a fixture sets it

    def __init__(self, frames: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.agent = CustomCNN().eval().requires_grad_(False)
        seen = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
        acts = self.agent(seen, record=("conv4a",), outputs=False).activations
        self.batch = ActivationBatch(acts, torch.arange(6) // 2, seen if frames else None)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch, self.batch], batch_size=None, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch, self.batch], batch_size=None, shuffle=True)  # its iterator draws a seed


def fit(folder: Path, module: type[TinyModule], callbacks: list[Callback], data: TinyData | None = None) -> Trainer:
    data = data or TinyData()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=TensorBoardLogger(folder, "run", "version_0"),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module(), datamodule=data)
    return trainer


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _short_play(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    monkeypatch.setattr(visualised, "_LEVELS_AT_ONCE", 3)
    monkeypatch.setattr(visualised, "_LONGEST_EPISODE", 6)
    monkeypatch.setattr(TinyData, "cache_dir", cache)


def tags(folder: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(folder / "run/version_0"), size_guidance={"images": 0}).Reload()
    return {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def test_latents_are_drawn_at_the_end_and_every_so_many_validations(tmp_path: Path) -> None:
    callback = FeatureVisualisation(num_units=3, num_examples=2, every_n_validations=1, optimisation=QUICK)
    trainer = fit(tmp_path, TinySAE, [callback])
    assert callback.sheet is not None
    sae = trainer.lightning_module.sae
    latents = sae.encode(trainer.datamodule.batch.activations["conv4a"])
    shares = latents.mean((0, 2, 3)) * sae.decoder_norms()
    assert callback.sheet.units == shares.topk(3).indices.tolist()
    assert tags(tmp_path) == {"features/conv4a": [2, 4]}
    picture = Image.open(tmp_path / "run/version_0/figures/features_conv4a.png")
    assert np.array_equal(np.asarray(picture), callback.sheet.picture.numpy())


def test_channels_of_an_agent_are_drawn_over_its_own_play(tmp_path: Path) -> None:
    callback = FeatureVisualisation(num_units=2, num_examples=2, num_frames=20, optimisation=QUICK)
    fit(tmp_path, TinyAgent, [callback])
    assert tags(tmp_path) == {"features/conv4a": [4]}
    assert callback.sheet is not None
    assert len(callback.sheet.units) == 2


@pytest.mark.parametrize("module", [TinySAE, TinyAgent])
def test_a_grid_of_the_same_units_evolves_while_training(tmp_path: Path, module: type[TinyModule]) -> None:
    """Its units are those most active in the batch of the first grid, and each grid goes on from the one before."""
    made: list[tuple[list[Unit], Tensor | None, OptimisedImages]] = []
    optimise = evolving_images.optimise_images

    def noted(agent: CustomCNN, tap: str, units: list[Unit], *rest: Any, **options: Any) -> OptimisedImages:
        assert options["settings"].steps == 3
        made.append((units, options["begin"], optimise(agent, tap, units, *rest, **options)))
        return made[-1][2]

    class Look(Callback):
        """What was most active in the batch of step 2."""

        most: list[int] = []

        def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
            if trainer.global_step == 2:
                with torch.no_grad():
                    if isinstance(module, TinySAE):
                        found = module.sae.encode(batch.activations["conv4a"]).mean((0, 2, 3))
                        found = found * module.sae.decoder_norms()
                    else:
                        acts = module.agent(batch.frames, record=("conv4a",), outputs=False).activations["conv4a"]
                        found = acts.mean((0, 2, 3))
                self.most = found.topk(4).indices.tolist()

    callback = FeatureVisualisation(
        num_units=1, num_examples=1, num_frames=20, every_n_steps=2, evolving_units=4, evolving_steps=3,
        optimisation=QUICK,
    )  # fmt: skip
    look = Look()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evolving_images, "optimise_images", noted)
        trainer = fit(tmp_path, module, [look, callback])
    assert tags(tmp_path) == {"features/conv4a": [4], "features_evolving/conv4a": [2, 4]}
    (units, begin, first), (units_later, begin_later, second) = made
    assert [unit.number for unit in units] == look.most
    assert units_later == units
    assert begin is None
    assert begin_later is not None
    assert begin_later.equal(first.entries)
    assert not second.images.equal(first.images)
    share = float(trainer.callback_metrics["features_evolving/time_share"])
    assert 0 < share < 1
    events = EventAccumulator(str(tmp_path / "run/version_0")).Reload()
    assert [scalar.step for scalar in events.Scalars("features_evolving/time_share")] == [2, 4]


def test_a_batch_without_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set every_n_steps to null"):
        fit(tmp_path, TinyAgent, [FeatureVisualisation(every_n_steps=1, optimisation=QUICK)], TinyData(frames=False))


@pytest.mark.parametrize("module", [TinySAE, TinyAgent])
def test_training_is_bitwise_the_same_with_it(tmp_path: Path, module: type[TinyModule]) -> None:
    callback = FeatureVisualisation(
        num_units=1, num_examples=1, num_frames=20, every_n_steps=1, evolving_units=2, every_n_validations=1,
        optimisation=QUICK,
    )  # fmt: skip

    class Witness(Callback):
        """Looks at gradients and modes just before and after the drawing."""

        seen: list[tuple[dict[str, Tensor | None], list[bool], Tensor]] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            self.on_train_end(trainer, pl_module)

        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            gradients = {
                name: None if parameter.grad is None else parameter.grad.clone()
                for name, parameter in pl_module.named_parameters()
            }
            modes = [part.training for part in [*pl_module.modules(), *trainer.datamodule.agent.modules()]]
            self.seen.append((gradients, modes, torch.get_rng_state()))

    before, after = Witness(), Witness()
    before.seen, after.seen = [], []
    with_it = fit(tmp_path / "with", module, [before, callback, after]).lightning_module.state_dict()
    without = fit(tmp_path / "without", module, []).lightning_module.state_dict()
    assert with_it.keys() == without.keys()
    assert all(with_it[name].equal(without[name]) for name in without)
    assert len(before.seen) == len(after.seen) == 5  # four steps, and the end
    for (gradients, modes, state), (gradients_after, modes_after, state_after) in zip(
        before.seen, after.seen, strict=True
    ):
        assert modes == modes_after
        assert state.equal(state_after)
        assert gradients.keys() == gradients_after.keys()
        for name, gradient in gradients.items():
            assert (gradient is None) == (gradients_after[name] is None)
            assert gradient is None or gradient.equal(gradients_after[name])


def test_the_rhythm_survives_a_checkpoint() -> None:
    callback = FeatureVisualisation(every_n_validations=2)
    callback._validations = 3
    callback._evolving._units, callback._evolving._entries = [5, 2], torch.ones(2, 3)
    resumed = FeatureVisualisation(every_n_validations=2)
    resumed.load_state_dict(callback.state_dict())
    assert resumed._validations == 3
    assert resumed._evolving._units == [5, 2]
    assert resumed._evolving._entries is not None
    assert resumed._evolving._entries.eq(1).all()


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_units is 0"):
        FeatureVisualisation(num_units=0)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        FeatureVisualisation(every_n_steps=0)
    with pytest.raises(ValueError, match="diversity is -1"):
        FeatureVisualisation(diversity=-1)
    with pytest.raises(ValueError, match="every_n_validations is 0"):
        FeatureVisualisation(every_n_validations=0)
    with pytest.raises(ValueError, match="the autoencoder's is 'conv4a'"):
        fit(tmp_path, TinySAE, [FeatureVisualisation(tap="conv3a")])
    with pytest.raises(ValueError, match="no tap 'conv9'"):
        fit(tmp_path, TinyAgent, [FeatureVisualisation(tap="conv9")])
    with pytest.raises(ValueError, match="carry no frames"):
        fit(tmp_path, TinySAE, [FeatureVisualisation(optimisation=QUICK)], TinyData(frames=False))

    class Neither(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="Neither has neither"):
        fit(tmp_path, Neither, [FeatureVisualisation()])
