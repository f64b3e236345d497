from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from datamodules import ActivationBatch
from lightning_modules import ConvSAE, SAESweep, SweepMember
from lightning_modules.sweep_member import expand
from networks import BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, SparseAutoencoder, TopKSAE
from tests.sae_training import PlantedData, small_trainer

RELU = partial(SparseAutoencoder, sparsity_warmup_steps=10)
AUXK: dict[str, Any] = {"resample_every": None, "auxk_coefficient": 0.1, "auxk_latents": 3, "learning_rate": 2e-2}
SHARED: dict[str, Any] = {"tap": "planted", "warmup_steps": 5, "dead_window": 700, "compile": False}
ENTRIES = [
    SweepMember("relu_{sparsity_coefficient}", RELU, 2, resample_every=6, grid={"sparsity_coefficient": [0.3, 3.0]}),
    SweepMember("wide", RELU, 3, seed=7, resample_every=4),
    SweepMember("topk_{k}_{seed}", partial(TopKSAE), 2, grid={"k": [2, 3], "seed": [0, 1]}, **AUXK),
    SweepMember("batch_{k}_{seed}", BatchTopKSAE, 2, grid={"k": [1.5, 2], "seed": [0, 1]}, **AUXK),
    SweepMember("jump", partial(JumpReLUSAE, sparsity_warmup_steps=10), 2, resample_every=5),
    SweepMember("gated", partial(GatedSAE, sparsity_warmup_steps=10), 2, resample_every=None),
    SweepMember("matryoshka", partial(MatryoshkaSAE, k=2), 2, resample_every=None),
]


def sweep(entries: list[SweepMember] = ENTRIES, **arguments: Any) -> SAESweep:
    return SAESweep(entries, **(SHARED | arguments))


def alone(member: SweepMember, **arguments: Any) -> ConvSAE:
    names = ("sae", "expansion", "kernel_size", "learning_rate", "resample_every", "auxk_coefficient", "auxk_latents")
    return ConvSAE(**{name: getattr(member, name) for name in names}, **(SHARED | arguments))


class Alone(NamedTuple):
    """What a member is that was trained alone."""

    weights: dict[str, torch.Tensor]
    since_fired: torch.Tensor
    metrics: dict[str, torch.Tensor]


@cache
def trained_alone(clip: float | None) -> list[Alone]:
    """Every member by itself, in order."""
    found = []
    for member in expand(ENTRIES, 8):
        module, data = alone(member, decoder_bias="geometric_median"), PlantedData()
        trainer = small_trainer(20, limit_val_batches=1.0, gradient_clip_val=clip)
        torch.manual_seed(member.seed)
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=PlantedData(), verbose=False)
        found.append(Alone(module.sae.state_dict(), module.firing.since_fired, dict(trainer.callback_metrics)))
    return found


@pytest.mark.parametrize(("at_once", "clip"), [(None, None), (1, None), (8, None), (None, 0.05)])
def test_every_member_is_what_it_would_be_alone(at_once: int | None, clip: float | None) -> None:
    """Weights, threshold, dead latents, losses and validation; with another's resampling and AuxK going on beside."""
    together = sweep(members_at_once=at_once, decoder_bias="geometric_median")
    trainer = small_trainer(20, limit_val_batches=1.0, gradient_clip_val=clip)
    trainer.fit(together, datamodule=PlantedData())
    trainer.validate(together, datamodule=PlantedData(), verbose=False)
    firing = together.firing.since_fired.split(together.objective.widths)
    for (name, sae), own, since_fired in zip(together.saes.items(), trained_alone(clip), firing, strict=True):
        for key, tensor in own.weights.items():
            torch.testing.assert_close(
                sae.state_dict()[key], tensor, atol=1e-5, rtol=1e-5, msg=lambda text, at=(name, key): f"{at}: {text}"
            )
        assert torch.equal(since_fired, own.since_fired), name
        for key, value in own.metrics.items():
            kept = trainer.callback_metrics.get(key.replace("sae/", f"sae/{name}/"), trainer.callback_metrics.get(key))
            assert kept == pytest.approx(float(value), rel=1e-4, abs=1e-5), (name, key)


def test_the_compiled_step_is_the_same(tmp_path: Path) -> None:
    """On a CPU the kernel computes ReLU and TopK, torch the rest; those that are alike in one piece."""
    entries = [ENTRIES[0], ENTRIES[2], SweepMember("jump_{seed}", JumpReLUSAE, 2, grid={"seed": [0, 1]})]
    found = []
    for compiled in (True, False):
        module = sweep(entries, compile=compiled, members_at_once=4)
        small_trainer(8).fit(module, datamodule=PlantedData())
        found.append({name: sae(PlantedData().sample(20, 1)) for name, sae in module.saes.items()})
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=1e-3)


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=9, save_top_k=-1, filename="{step}")
    whole, resumed = sweep(), sweep()
    small_trainer(20, callbacks=[checkpoints], enable_checkpointing=True).fit(whole, datamodule=PlantedData())
    torch.manual_seed(5)
    trainer = small_trainer(20)
    trainer.fit(resumed, datamodule=PlantedData(), ckpt_path=tmp_path / "step=9.ckpt", weights_only=True)
    assert trainer.global_step == 20
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    other = sweep([SweepMember("wide", RELU, 3, seed=8, resample_every=4), *ENTRIES[3:]])
    with pytest.raises(ValueError, match=r"not those of this checkpoint \(.*wide"):
        small_trainer(20).fit(other, datamodule=PlantedData(), ckpt_path=tmp_path / "step=9.ckpt", weights_only=True)


class OtherTaps(PlantedData):
    """The same activations by two names."""

    @property
    def activation_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("planted", "alike"), (self.channels,))

    def batch(self, seed: int) -> ActivationBatch:
        made = super().batch(seed)
        made.activations["alike"] = made.activations["planted"]
        return made


def test_another_tap_is_refused_and_other_settings_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def go_on(path: Path, **arguments: Any) -> None:
        module = sweep(ENTRIES[:1], **arguments)
        small_trainer(4).fit(module, datamodule=OtherTaps(), ckpt_path=path, weights_only=True)

    trainer = small_trainer(2)
    trainer.fit(sweep(ENTRIES[:1]), datamodule=OtherTaps())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"of another training .tap 'planted' there, 'alike' here"):
        go_on(tmp_path / "a.ckpt", tap="alike")
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    go_on(tmp_path / "a.ckpt", in_channels=8, warmup_steps=3, members_at_once=1)  # it has 8
    (told,) = (line for line in caplog.messages if "settings that have changed" in line)
    assert told.endswith("checkpoint: warmup_steps 5 there, 3 here")
    before = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del before["sae_sweep_settings"]
    torch.save(before, tmp_path / "before.ckpt")
    go_on(tmp_path / "before.ckpt", tap="alike")


def test_gradients_are_clipped_without_the_scale_of_half_precision() -> None:
    trained = []
    for plugins in (None, [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]):
        module = sweep(ENTRIES[:1])
        small_trainer(5, plugins=plugins, gradient_clip_val=0.05).fit(module, datamodule=PlantedData())
        trained.append(module)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_not_a_number_stops_naming_the_step() -> None:
    message = r"relu_0.3/loss, relu_3.0/loss not finite since step 7: lower the learning_rate .*init_args.members"
    with pytest.raises(ValueError, match=message):
        small_trainer(20).fit(sweep(ENTRIES[:1]), datamodule=PlantedData(bad_step=7))


def test_a_grid_gives_every_combination() -> None:
    names = [member.name for member in expand(ENTRIES, 8)]
    assert names[:7] == ["relu_0.3", "relu_3.0", "wide", "topk_2_0", "topk_2_1", "topk_3_0", "topk_3_1"]
    made = [member.make(8) for member in expand(ENTRIES[2:3], 8)]
    assert [sae.k for sae in made] == [2, 2, 3, 3]  # type: ignore[attr-defined]
    assert torch.equal(made[0].encoder_weight, made[2].encoder_weight)
    assert not torch.equal(made[0].encoder_weight, made[1].encoder_weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"kk": [2]}}, "a has kk, which neither a member nor TopKSAE takes; there are: expansion"),
        ({"grid": {"k": [2.5]}}, "k 2.5 is no whole number"),
        ({"grid": {"k": [2, 3]}}, "2 members are named a: say in braces"),
        ({"name": "a_{kk}", "grid": {"k": [2]}}, "a_{kk} has in braces what is not in the grid"),
        ({"name": "a/b"}, "'a/b' is no name for a file"),
        ({"grid": {"k": [17]}}, "a: k is 17: choose 1 to 16"),
        ({"grid": {"k": []}}, "members is empty"),
        ({"grid": {"learning_rate": [0.0]}}, "learning_rate is 0.0: it must be above 0"),
        ({"auxk_latents": 2}, "set auxk_coefficient with it"),
        ({"resample_every": 0}, "resample_every is 0"),
    ],
)
def test_refuses_members(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAESweep([SweepMember(**({"name": "a", "sae": TopKSAE, "expansion": 2} | arguments))], in_channels=8)


@pytest.mark.parametrize(
    "arguments", [{"members_at_once": 0}, {"decay_fraction": 2.0}, {"decoder_bias": "mean"}, {"dead_window": 0}]
)
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        sweep(**arguments)


def test_refuses_single_positions_for_a_wide_kernel_before_they_are_recorded() -> None:
    module = SAESweep([SweepMember("a", TopKSAE, expansion=2, kernel_size=3)])
    data = SimpleNamespace(activation_shapes={"conv4a": (8, 4, 4)}, positions_per_frame=64)
    with pytest.raises(ValueError, match="kernel_size is 3, but the data hold single positions of conv4a"):
        module.check_data(data)
    data.positions_per_frame = None
    assert module.check_data(data) == (8, 4, 4)
