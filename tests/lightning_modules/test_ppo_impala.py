import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AgentExport
from datamodules import RolloutDataModule
from lightning_modules import PPOImpala
from lightning_modules.ppo_losses import clipped_policy_loss, clipped_value_loss, policy_entropy
from networks import CustomCNN, load_agent, log_probabilities, save_weights

FRAMES = 32  # of a rollout
SHIPPED = "pretrained/heist_easy_customcnn_seed0.safetensors"


class FirstRatios(Callback):
    """|ratio - 1| on the first minibatch after every rollout."""

    def __init__(self):
        self.deviations = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            with trainer.precision_plugin.train_step_context():  # with gradients, as it trains
                logits = pl_module.agent(batch.frames).logits.detach()
            ratios = (log_probabilities(logits, batch.actions) - batch.log_probs).exp()
            self.deviations.append(float((ratios - 1).abs().max()))


def fit(folder, epochs, callbacks=(), ckpt_path=None, precision="32-true", data=None, limit=None, **arguments):
    torch.manual_seed(0)
    module = PPOImpala(**{"agent": CustomCNN(), **arguments})
    data = data or RolloutDataModule(num_environments=4, num_steps=8, num_epochs=2, num_minibatches=2)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        precision=precision,
        gradient_clip_val=0.5,
        logger=TensorBoardLogger(folder, "ppo", "run"),
        callbacks=[*callbacks, AgentExport(1), ModelCheckpoint(save_last=True, filename="{epoch}", save_top_k=-1)],
        limit_train_batches=limit,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1000,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.fixture
def clone(tmp_path):
    torch.manual_seed(1)
    agent = CustomCNN()
    with torch.no_grad():
        agent.fc3.weight *= 100  # an opinion, as a clone has
    path = tmp_path / "clone.safetensors"
    save_weights(path, agent, {})
    return str(path)


@pytest.mark.parametrize(("precision", "bound"), [("32-true", 1e-4), ("bf16-mixed", 1e-2)])
def test_first_minibatch_is_on_policy(tmp_path, clone, precision, bound):
    ratios = FirstRatios()
    fit(tmp_path, 3, [ratios], precision=precision, warm_start=clone)
    assert len(ratios.deviations) == 3
    assert max(ratios.deviations) <= bound
    events = EventAccumulator(str(tmp_path / "ppo/run")).Reload()
    logged = [event.value for event in events.Scalars("ppo/ratio_drift")]
    torch.testing.assert_close(logged, ratios.deviations, rtol=1e-3, atol=1e-6)


class FirstLosses(Callback):
    """Losses on the first minibatch of the first rollout and the gradient of their sum, with the shipped agent's
    weights: in float32 as it is, and as it trains.
    """

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        plain = load_agent(SHIPPED)
        self.exact = self.losses(plain, batch)
        with trainer.precision_plugin.train_step_context():
            self.fast = self.losses(pl_module.agent, batch)
        return -1  # enough of this rollout

    @staticmethod
    def losses(agent, batch):
        agent.zero_grad()
        output = agent(batch.frames)
        log_probs = log_probabilities(output.logits, batch.actions)
        # as if the weights had moved since the rollout, for at ratio 1 there is nothing to compare
        policy = clipped_policy_loss(
            log_probs, batch.log_probs - 0.1 * batch.actions.sub(4).sign(), batch.advantages, 0.2
        )
        value = clipped_value_loss(output.value, batch.values, batch.values + 1, math.inf)
        entropy = policy_entropy(output.logits)
        (policy.loss + 0.5 * value - 0.01 * entropy).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in agent.parameters()])
        return torch.stack([policy.loss, value, entropy]).detach(), gradient.clone()


def test_the_fast_path_computes_the_same_losses_and_is_on_policy(tmp_path):
    """bfloat16 and compiled against float32 and eager; tolerances are of bfloat16's 8 bits over seven layers."""
    ratios, both = FirstRatios(), FirstLosses()
    data = RolloutDataModule(num_environments=8, num_steps=16, num_epochs=1, num_minibatches=1)
    fit(tmp_path, 1, [ratios, both], precision="bf16-mixed", compile=True, warm_start=SHIPPED, data=data)
    assert len(ratios.deviations) == 1
    assert ratios.deviations[0] <= 1e-2
    (exact, exact_gradient), (fast, fast_gradient) = both.exact, both.fast
    torch.testing.assert_close(fast, exact, rtol=0.02, atol=5e-3)
    assert torch.cosine_similarity(fast_gradient, exact_gradient, dim=0) > 0.99


def test_resumed_training_equals_uninterrupted(tmp_path, clone):
    warm = {"warm_start": clone, "value_warmup_frames": FRAMES, "kl_coefficient": 1.0, "kl_frames": 3 * FRAMES}
    whole = fit(tmp_path / "whole", 3, anneal_frames=1000, **warm)
    fit(tmp_path / "part", 1, anneal_frames=1000, **warm)
    last = tmp_path / "part/ppo/run/checkpoints/last.ckpt"
    resumed = fit(tmp_path / "part", 3, ckpt_path=last, anneal_frames=1000, **warm)
    assert resumed.trainer.global_step == whole.trainer.global_step == 12
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for module in (whole, resumed):
        assert module.trainer.datamodule.env_steps == 3 * FRAMES
    states = [module.trainer.datamodule.player.state_dict() for module in (whole, resumed)]
    assert torch.equal(states[0]["environments"], states[1]["environments"])
    assert torch.equal(states[0]["generator"], states[1]["generator"])
    assert states[0]["tally"] == states[1]["tally"]


def test_metrics_lie_at_environment_frames(tmp_path):
    fit(tmp_path, 2)
    events = EventAccumulator(str(tmp_path / "ppo/run"))
    events.Reload()
    names = {"policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "explained_variance"}
    assert {f"ppo/{name}" for name in names} | {"env_steps"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("ppo/entropy")] == [FRAMES, 2 * FRAMES]
    assert 1 < events.Scalars("ppo/entropy")[0].value <= math.log(15)


def test_nan_stops_with_the_frames_and_keeps_the_last_checkpoint(tmp_path):
    class Break(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.agent.fc1.weight.data[0, 0] = torch.nan

    with pytest.raises(ValueError, match=f"not finite after {2 * FRAMES} environment frames: ppo/policy_loss"):
        fit(tmp_path, 3, [Break()])
    saved = torch.load(tmp_path / "ppo/run/checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())
    assert load_agent(tmp_path / "ppo/run/agent.safetensors").metadata["env_steps"] == FRAMES


def test_nan_in_a_loss_leaves_a_checkpoint_to_go_on_from(tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 3:
                batch.returns.fill_(torch.nan)

    with pytest.raises(ValueError, match=f"not finite after {2 * FRAMES} environment frames: ppo/value_loss. The"):
        fit(tmp_path / "broken", 3, [Poison()])
    last = tmp_path / "broken/ppo/run/checkpoints/last.ckpt"
    resumed, whole = fit(tmp_path / "broken", 3, ckpt_path=last), fit(tmp_path / "whole", 3)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


class StopAmid(Callback):
    """Asks for the end amid the second rollout, as `max_time` does."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            trainer.should_stop = True


@pytest.mark.parametrize("save_last", [True, "link", None])
def test_a_stop_amid_a_rollout_waits_for_its_end_and_is_saved(tmp_path, save_last):
    sparse = ModelCheckpoint(tmp_path / "own", "sparse-{epoch}", every_n_epochs=5, save_last=save_last)
    stopped = fit(tmp_path / "stopped", 3, [StopAmid(), sparse])
    assert (stopped.trainer.current_epoch, stopped.trainer.global_step) == (2, 2 * 4)
    saved = tmp_path / "own" / ("last.ckpt" if save_last else "sparse-epoch=1.ckpt")
    resumed, whole = fit(tmp_path / "stopped", 3, ckpt_path=saved), fit(tmp_path / "whole", 3)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_the_last_rollout_is_saved_whatever_the_rhythm(tmp_path):
    sparse = ModelCheckpoint(tmp_path / "own", "sparse-{epoch}", every_n_epochs=2, save_top_k=-1)
    fit(tmp_path, 3, [sparse])
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["sparse-epoch=1.ckpt", "sparse-epoch=2.ckpt"]


def test_nan_in_a_rollout_that_is_to_be_the_last_is_not_saved(tmp_path):
    class Poison(StopAmid):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 1:
                batch.returns.fill_(torch.nan)

    with pytest.raises(ValueError, match="not finite"):
        fit(tmp_path, 3, [Poison()])
    assert torch.load(tmp_path / "ppo/run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0


def test_max_steps_inside_a_rollout_is_refused(tmp_path):
    trainer = Trainer(max_steps=6, accelerator="cpu", default_root_dir=tmp_path, logger=False)
    data = RolloutDataModule(num_environments=4, num_steps=8, num_epochs=2, num_minibatches=2)
    with pytest.raises(ValueError, match="max_steps is 6 and a rollout is learnt from in 4: give a multiple"):
        trainer.fit(PPOImpala(CustomCNN()), data)


class Validated(PPOImpala):
    """Draws from the global generator in training, and validates."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + torch.rand(()))

    def validation_step(self, batch, batch_idx):
        self.log("drawn", self.agent(batch[0]).value.mean() + torch.rand(()))


class WithValidation(RolloutDataModule):
    """Validation frames in an order from the global generator."""

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(4, 64, 64, 3)), batch_size=2, shuffle=True)


@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_a_validation_in_between_changes_nothing_about_resuming(tmp_path, at_epoch_end):
    def run(name, epochs, ckpt_path=None):
        torch.manual_seed(0)
        module = Validated(CustomCNN())
        data = WithValidation(num_environments=4, num_steps=8, num_epochs=1, num_minibatches=2)
        checkpoint = ModelCheckpoint(tmp_path / name, save_last=True, save_on_train_epoch_end=at_epoch_end)
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, callbacks=[checkpoint], enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        assert data.env_steps == epochs * FRAMES
        return module

    whole = run("whole", 3)
    run("part", 2)
    resumed = run("part", 3, tmp_path / "part/last.ckpt")
    assert whole.trainer.global_step == resumed.trainer.global_step == 6
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("when", [{"every_n_train_steps": 1}, {"save_on_exception": True}])
def test_checkpoints_amid_a_rollout_are_refused(tmp_path, when):
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[ModelCheckpoint(tmp_path, **when)])
    with pytest.raises(ValueError, match="give ModelCheckpoint every_n_epochs"):
        trainer.fit(PPOImpala(CustomCNN()), datamodule=RolloutDataModule(num_environments=4, num_steps=8))


def test_agent_is_saved_with_where_it_comes_from(tmp_path, clone):
    module = fit(tmp_path, 1, warm_start=clone)
    agent = load_agent(tmp_path / "ppo/run/agent.safetensors")
    for name, tensor in agent.state_dict().items():
        assert torch.equal(tensor, module.agent.state_dict()[name])
    assert agent.metadata["warm_started"] is True
    assert agent.metadata["parent"]["hash"] == load_agent(clone).weights_hash
    assert agent.metadata["env_steps"] == FRAMES
    assert agent.metadata["environment"]["distribution_mode"] == "easy"


class Generous(RolloutDataModule):
    """A reward a step, so that there is something to predict."""

    def setup(self, stage):
        super().setup(stage)
        observe = self.player.environments.observe
        self.player.environments.observe = lambda: (lambda reward, *rest: (reward + 1, *rest))(*observe())


def test_value_head_learns_alone_at_first(tmp_path, clone):
    before = load_agent(clone).state_dict()
    arguments = {"warm_start": clone, "value_warmup_frames": FRAMES, "learning_rate": 1e-4}
    sizes = {"num_environments": 4, "num_steps": 8, "num_epochs": 2, "num_minibatches": 2}
    alone = fit(tmp_path / "alone", 1, data=Generous(**sizes), **arguments)
    changed = {name for name, tensor in alone.agent.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"value_fc.weight", "value_fc.bias"}
    assert alone.agent.value_fc.weight.abs().max() > 0  # began from zero
    assert alone.trainer.optimizers[0].param_groups[0]["lr"] == 1e-3
    assert alone.agent_metadata()["training"].startswith("value head alone")
    both = fit(tmp_path / "both", 2, data=Generous(**sizes), **arguments)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in both.agent.state_dict().items())
    assert both.trainer.optimizers[0].param_groups[0]["lr"] == 1e-4
    assert both.agent_metadata()["training"] == "PPO"


def test_penalty_holds_the_agent_near_the_clone_and_fades(tmp_path, clone):
    drift = {}
    for weight in (0.0, 30.0):
        penalty = {"kl_coefficient": weight, "kl_frames": 100 * FRAMES} if weight else {}
        module = fit(tmp_path / str(weight), 2, warm_start=clone, learning_rate=3e-3, **penalty)
        frames, reference = module.trainer.datamodule.rollout.frames, load_agent(clone)
        with torch.no_grad():
            there, here = reference(frames).logits.log_softmax(-1), module.agent(frames).logits.log_softmax(-1)
        drift[weight] = float((there.exp() * (there - here)).sum(-1).mean())
    assert drift[30.0] < 0.5 * drift[0.0]
    assert module.kl_weight() == pytest.approx(30 * 0.98)
    module.trainer.datamodule.env_steps = 200 * FRAMES
    assert module.kl_weight() == 0
    assert module.reference_logits(frames) is None


def test_learning_rate_falls_with_frames(tmp_path):
    module = fit(tmp_path, 2, anneal_frames=4 * FRAMES)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(5e-4 / 2)


def test_a_rollout_cut_short_by_the_trainer_is_logged_and_saved(tmp_path):
    module = fit(tmp_path, 1, limit=1)
    assert module.trainer.global_step == 1
    assert module.trainer.callback_metrics["env_steps"] == FRAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value_warmup_frames": 10}, "set warm_start to its file"),
        ({"anneal_frames": 0}, "anneal_frames is 0: it must be above 0"),
        ({"clip": 0.0}, "clip is 0.0: it must be above 0"),
        ({"value_warmup_learning_rate": 0.0}, "value_warmup_learning_rate is 0.0: it must be above 0"),
        ({"entropy_coefficient": -0.1}, "entropy_coefficient is -0.1: it must be at least 0"),
        ({"value_coefficient": math.nan}, "value_coefficient is nan: it must be at least 0"),
        ({"agent": CustomCNN(num_actions=9)}, "chooses among 9 actions, the game has 15"),
        ({"warm_start": "x", "kl_coefficient": 1.0}, "set both, or neither"),
        ({"warm_start": "nowhere.safetensors"}, r"no file nowhere\.safetensors"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, 1, **arguments)


def test_a_run_goes_on_from_the_same_clone_wherever_it_lies(tmp_path, clone):
    fit(tmp_path, 1, warm_start=clone)
    last = tmp_path / "ppo/run/checkpoints/last.ckpt"
    elsewhere = Path(clone).rename(tmp_path / "moved.safetensors")
    assert fit(tmp_path, 2, ckpt_path=last, warm_start=str(elsewhere)).trainer.global_step == 2 * 4
    save_weights(clone, CustomCNN(), {})
    with pytest.raises(ValueError, match=r"another training .warm_start_weights"):
        fit(tmp_path, 2, ckpt_path=last, warm_start=clone)


def test_other_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"datamodules\.RolloutDataModule"):
        fit(tmp_path, 1, data=LightningDataModule())
