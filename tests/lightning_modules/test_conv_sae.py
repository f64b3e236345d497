import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging

from lightning_modules import ConvSAE
from lightning_modules.sae_revival import resample_latents
from networks import BatchTopKSAE, GatedSAE, JumpReLUSAE, SparseAutoencoder, TopKSAE
from networks.geometric_median import geometric_median
from tests.sae_training import PlantedData, PlantedFilters, small_trainer


def small_module(**arguments: Any) -> ConvSAE:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"tap": "planted", "expansion": 2, "compile": False, "warmup_steps": 5}
    kind = partial(SparseAutoencoder, sparsity_warmup_steps=10)
    return ConvSAE(**(defaults | {"sae": kind, "resample_every": None} | arguments))


@pytest.mark.parametrize("size", [None, 2])
def test_recovers_a_planted_dictionary(size: int | None) -> None:
    data = PlantedData(batches=700, batch_size=512 if size is None else 128, size=size)
    module = small_module(dead_window=20_000, resample_every=50, learning_rate=2e-2)
    trainer = small_trainer(700, limit_val_batches=1.0)
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    found = module.sae.directions()[:, :, 0, 0]
    similarity = (found / found.norm(dim=1, keepdim=True)) @ data.directions.T
    assert similarity.amax(0).median() > 0.98
    assert (similarity.amax(0) > 0.9).float().mean() > 0.85
    metrics = trainer.callback_metrics
    assert metrics["sae/explained_variance"] > 0.9  # the penalty shrinks
    assert metrics["sae/l0"] < 3  # 1.6 are planted
    assert metrics["sae/l0_raw"] > metrics["sae/l0"]
    assert ("sae/l0_inside" in metrics) == (size is not None)
    assert metrics["sae/validation_frames"] == 2 * data.batch_size
    assert metrics["sae/l1"] > 0
    assert 0 <= metrics["sae/dead_fraction"] <= metrics["sae/almost_dead_fraction"] < 0.5
    assert 0 < metrics["sae/nearest_cosine"] < 0.9
    assert metrics["sae/duplicate_fraction"] < 0.3


def test_spatial_latents_explain_planted_filters_that_single_positions_cannot() -> None:
    """At the same L0; and they lie in the map the way round that the filters do."""
    variances = {}
    for kernel_size in (3, 1):
        data = PlantedFilters(channels=3, size=6, batch_size=32, batches=200)
        module = small_module(sae=partial(BatchTopKSAE, k=0.25), kernel_size=kernel_size, expansion=8)
        trainer = small_trainer(200, limit_val_batches=1.0)
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=data, verbose=False)
        variances[kernel_size] = trainer.callback_metrics["sae/explained_variance"]
        assert trainer.callback_metrics["sae/l0"] == pytest.approx(0.25, abs=0.03)  # 0.18 are planted
        if kernel_size == 3:
            found = F.normalize(module.sae.directions().flatten(1), dim=1)
            ways = (data.filters, data.filters.flip(2, 3))
            best, turned = ((found @ filters.flatten(1).T).amax(0).mean() for filters in ways)
            assert best > turned + 0.1
    assert variances[3] > 0.65
    assert variances[3] > variances[1] + 0.1


def test_the_scale_of_the_activations_does_not_matter() -> None:
    """Raw activations in and out; the same training whatever their unit is."""
    found = []
    for scale in (1.0, 64.0):
        data = PlantedData(scale=scale)
        module = small_module()
        small_trainer(30).fit(module, datamodule=data)
        acts = data.sample(50, 7)
        found.append((module.sae.encode(acts), module.sae(acts) / scale))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_auxk_brings_dead_latents_back() -> None:
    """Half the latents of a TopK autoencoder are too small to win; without AuxK they stay so."""
    fractions = []
    for coefficient in (None, 1.0):
        module = small_module(
            sae=partial(TopKSAE, k=2), auxk_coefficient=coefficient, dead_window=1000, learning_rate=2e-2
        )
        data = PlantedData()
        trainer = small_trainer(100, callbacks=[_Silence()])
        trainer.fit(module, datamodule=data)
        fractions.append(module.firing.dead().float().mean().item())
    assert fractions[0] > 0.3
    assert fractions[1] < 0.1


class _Silence(Callback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sae: Any = pl_module.sae
        with torch.no_grad():
            sae.encoder_weight[: sae.num_latents // 2] *= 1e-3


def test_unit_norm_decoders_stay_so_and_others_do_not() -> None:
    for unit_norm in (True, False):
        module = small_module(sae=partial(TopKSAE, k=2, unit_norm_decoder=unit_norm))
        small_trainer(10).fit(module, datamodule=PlantedData())
        off = (module.sae.decoder_norms() - 1).abs().amax()
        assert (off < 1e-5) == unit_norm


def test_the_decoder_bias_can_begin_as_the_geometric_median() -> None:
    """One step at a rate of nearly nothing; a resumed run does not begin again."""
    module = small_module(decoder_bias="geometric_median", learning_rate=1e-9)
    data = PlantedData()
    small_trainer(3).fit(module, datamodule=data)
    acts = data.batch(0).activations["planted"]
    expected = geometric_median((acts - module.sae.mean) / module.sae.scale)
    assert expected.norm() > 0.1
    torch.testing.assert_close(module.sae.decoder_bias.detach(), expected, atol=1e-5, rtol=1e-5)
    plain = small_module(learning_rate=1e-9)
    small_trainer(1).fit(plain, datamodule=PlantedData())
    assert plain.sae.decoder_bias.norm() < 1e-6


@pytest.mark.parametrize("kind", [SparseAutoencoder, BatchTopKSAE])
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path, kind: Any) -> None:
    arguments: dict[str, Any] = {"dead_window": 500, "resample_every": 4, "decay_fraction": 0.2, "sae": kind}
    arguments |= {"auxk_coefficient": 0.1, "decoder_bias": "geometric_median"}
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=9, save_top_k=-1, filename="{step}")
    whole = small_module(**arguments)
    torch.manual_seed(1)
    small_trainer(20, callbacks=[checkpoints], enable_checkpointing=True).fit(whole, datamodule=PlantedData())
    resumed = small_module(**arguments)
    torch.manual_seed(5)
    trainer = small_trainer(20)
    path = tmp_path / "step=9.ckpt"
    trainer.fit(resumed, datamodule=PlantedData(), ckpt_path=path, weights_only=True)
    assert trainer.global_step == 20
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert resumed.firing.seen == 20 * 256


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no compiler")
@pytest.mark.parametrize(
    "arguments", [{"sae": partial(SparseAutoencoder, sparsity_knee=0.5)}, {"sae": TopKSAE, "auxk_coefficient": 1 / 32}]
)
@pytest.mark.parametrize(("clip", "batches"), [(None, 1), (0.5, 1), (0.5, 2)])
def test_the_compiled_step_trains_as_torch_does(arguments: dict[str, Any], clip: float | None, batches: int) -> None:
    trained = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = small_module(compile=compile, resample_every=20, learning_rate=1e-3, **arguments)
        trainer = small_trainer(60)
        trainer.gradient_clip_val, trainer.accumulate_grad_batches = clip, batches
        trainer.fit(module, datamodule=PlantedData())
        assert (module._kernel is not None) == (module._kernel_adam is not None) == compile
        trained.append(module)
    for one, other in zip(trained[0].sae.parameters(), trained[1].sae.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert torch.equal(trained[0].firing.seen, trained[1].firing.seen)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_under_mixed_precision_too(algorithm: str) -> None:
    trained = []
    for precision in ("32-true", "bf16-mixed"):
        module = small_module(sae=GatedSAE, compile=False)
        trainer = small_trainer(
            5, precision=precision, gradient_clip_val=0.05, gradient_clip_algorithm=algorithm
        )  # which a fused optimiser does not let Lightning do
        trainer.fit(module, datamodule=PlantedData())
        trained.append(module.sae)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("step", [0, 6, 12, 19])  # latents are resampled at 12
def test_not_a_number_stops_naming_the_step(step: int, tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=5)
    with pytest.raises(ValueError, match=rf"not finite since step {step}:"):
        small_trainer(20, callbacks=[checkpoints], enable_checkpointing=True, log_every_n_steps=7).fit(
            small_module(resample_every=12), datamodule=PlantedData(bad_step=step)
        )
    for path in tmp_path.glob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_refuses_data_that_do_not_fit() -> None:
    for arguments, message in (
        ({"tap": "conv9"}, "model.init_args.tap is 'conv9', but the data hold planted"),
        ({"in_channels": 32}, "in_channels is 32, but planted of this agent has 8"),
        ({"kernel_size": 3}, "kernel_size is 3, but the data hold single positions of planted: set data.init_args.pos"),
    ):
        with pytest.raises(ValueError, match=message):
            small_trainer(2).fit(small_module(**arguments), datamodule=PlantedData())


@pytest.mark.parametrize("averaging", [EMAWeightAveraging(), StochasticWeightAveraging(1e-3)])
def test_refuses_averages_of_weights_that_are_not_there_yet(averaging: Callback) -> None:
    with pytest.raises(ValueError, match="a ConvSAE cannot be copied"):
        small_trainer(2, callbacks=[averaging]).fit(small_module(), datamodule=PlantedData())


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        ({}, {"agent_hash": "another"}, "another agent"),
        ({"sae": TopKSAE}, {}, "kind 'SparseAutoencoder' there, 'TopKSAE' here"),
        ({"expansion": 3}, {}, "another training .expansion 2 there, 3 here"),
    ],
)
def test_refuses_a_checkpoint_that_does_not_fit(
    tmp_path: Path, arguments: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    trainer = small_trainer(2)
    trainer.fit(small_module(), datamodule=PlantedData())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        small_trainer(4).fit(
            small_module(**arguments), datamodule=PlantedData(**data), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


def test_going_on_with_other_settings_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = small_trainer(2)
    trainer.fit(small_module(sae=partial(TopKSAE, k=2)), datamodule=PlantedData())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = small_module(sae=partial(TopKSAE, k=3), learning_rate=2e-3)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        small_trainer(4).fit(resumed, datamodule=PlantedData(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    (told,) = (line for line in caplog.messages if "settings that have changed" in line)
    assert told.endswith("checkpoint: learning_rate 0.01 there, 0.002 here; k 2 there, 3 here")


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.0},
        {"decoder_bias": "mean"},
        {"auxk_coefficient": 0.0},
        {"auxk_latents": 3},
        {"decay_fraction": 1.5},
        {"resample_every": 0},
        {"dead_window": 0},
    ],
)
def test_refuses_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        small_module(**arguments)


def test_refuses_what_the_kind_refuses_before_any_data_are_recorded() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="choose 1 to 16, the number of latents"):
        ConvSAE("planted", expansion=2, in_channels=8, sae=partial(TopKSAE, k=17))
    with pytest.raises(ValueError, match="kernel_size 2 is even"):
        ConvSAE("planted", kernel_size=2)
    assert torch.equal(torch.get_rng_state(), state), "trying it out draws nothing"


@pytest.mark.parametrize("kind", [JumpReLUSAE, GatedSAE])
def test_resampling_resets_a_kinds_own_parameters(kind: Any) -> None:
    sae = kind(4, 2, 1)
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    which = torch.arange(8) < 3
    for _ in range(2):
        acts = torch.randn(200, 4)
        sae(acts).square().mean().backward()
        optimiser.step()
    resample_latents(sae, optimiser, which, acts, seed=0)
    for parameter, value in sae.further_parameters().items():
        assert torch.equal(parameter[which], torch.full((3,), value))
        assert (parameter[~which] != value).any()
        assert not optimiser.state[parameter]["exp_avg"][which].any()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_resampling_changes_the_chosen_latents_only(kernel_size: int) -> None:
    torch.manual_seed(0)
    sae = SparseAutoencoder(4, 2, kernel_size)
    with torch.no_grad():
        sae.decoder_bias.copy_(torch.randn(4))
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
    acts = torch.randn(20, 4, 5, 5)
    sae(acts).square().mean().backward()
    optimiser.step()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    which = torch.tensor([False, True, False, False, True, False, False, False])
    resample_latents(sae, optimiser, which, acts, seed=0)

    after = sae.state_dict()
    for name in ("decoder_bias", "mean", "scale"):
        assert torch.equal(after[name], before[name])
    for name, axis in (("encoder_weight", 0), ("encoder_bias", 0), ("decoder_weight", 1)):
        same = (after[name] == before[name]).movedim(axis, 0).reshape(8, -1).all(1)
        assert torch.equal(same, ~which), name
        for moment in ("exp_avg", "exp_avg_sq"):
            state = optimiser.state[sae.get_parameter(name)][moment].movedim(axis, 0).reshape(8, -1)
            assert torch.equal((state == 0).all(1), which), (name, moment)
    torch.testing.assert_close(sae.decoder_norms()[which], torch.ones(2))
    lengths = sae.encoder_weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths[which], 0.2 * lengths[~which].mean().expand(2))
    fires = (sae.encode(acts)[:, which] > 0).float().mean((0, 2, 3))
    assert (fires > 0).all()  # at least at the input it was pointed at
    assert (fires < 0.75).all()


@pytest.mark.parametrize("zeroed", [False, True])
def test_where_every_latent_is_dead_all_begin_anew_and_fire(zeroed: bool) -> None:
    torch.manual_seed(0)
    sae = SparseAutoencoder(4, 2, 1)
    with torch.no_grad():
        sae.encoder_weight.mul_(0.0 if zeroed else 3.0)
        sae.encoder_bias.fill_(-100.0)
    acts = torch.randn(50, 4)
    resample_latents(sae, torch.optim.Adam(sae.parameters()), torch.ones(8, dtype=torch.bool), acts, seed=0)
    lengths = sae.encoder_weight.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((8,), 0.2 if zeroed else 0.6))
    assert (sae.encode(acts) > 0).any(0).all()
