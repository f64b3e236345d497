"""Training a decision transformer: what the loss counts, what is decayed, and that it learns to do as it is asked."""

import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from lightning_modules import DecisionTransformer
from lightning_modules.decision_transformer import masked_loss, parameter_groups
from networks import GAMMA, CustomCNN, save_weights
from tests.trajectory_training import CONTEXT, PlantedData, planted_batch, small_network


def trainer(tmp_path, **arguments) -> L.Trainer:
    return L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **({"log_every_n_steps": 1} | arguments),
    )  # fmt: skip


def test_the_loss_counts_real_steps_alone():
    batch = planted_batch()
    logits = torch.randn(8, CONTEXT, 15, generator=torch.Generator().manual_seed(1))
    loss, right, count = masked_loss(logits, batch)
    by_hand = hits = steps = 0.0
    for row in range(8):
        for t in range(3 if row % 2 == 0 else CONTEXT):
            action, scores = int(batch.window.actions[row, t]), logits[row, t]
            by_hand += math.log(sum(math.exp(float(score)) for score in scores)) - float(scores[action])
            hits += action == int(scores.argmax())
            steps += 1
    assert (float(right), float(count)) == (hits, steps)
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)


def test_it_learns_to_do_what_the_return_says(tmp_path):
    """The planted action is a function of the return alone; a network that is not told cannot do better than chance."""
    L.seed_everything(0, verbose=False)
    module = DecisionTransformer(small_network(), learning_rate=3e-3, warmup_steps=5, compile=False)
    run = trainer(tmp_path, gradient_clip_val=1.0)
    run.fit(module, datamodule=PlantedData())
    assert run.callback_metrics["dt/train_action_accuracy"] > 0.95
    batch = planted_batch()
    with torch.no_grad():
        loss, right, count = masked_loss(module.eval()._logits(batch), batch)
    assert run.callback_metrics["dt/action_accuracy"] == pytest.approx(float(right / count)), "batches by their steps"
    assert run.callback_metrics["dt/loss"] == pytest.approx(float(loss / count), rel=1e-4)
    asked = torch.full_like(batch.window.returns_to_go, 3.0)
    module.agent.eval()
    with torch.no_grad():
        told = module.agent(batch.window._replace(returns_to_go=asked), features=batch.features).logits.argmax(-1)
    assert (told[batch.window.mask] == 3).all()


def test_nothing_may_be_logged(tmp_path):
    module, run = DecisionTransformer(small_network(), compile=False), trainer(tmp_path, log_every_n_steps=0)
    run.fit(module, datamodule=PlantedData(steps=2))
    assert "dt/loss" in run.callback_metrics
    assert "dt/train_loss" not in run.callback_metrics


def test_padded_actions_have_no_gradient(tmp_path):
    torch.manual_seed(0)
    module, batch = DecisionTransformer(small_network(), compile=False), planted_batch()
    other = batch._replace(window=batch.window._replace(actions=batch.window.actions.where(batch.window.mask, 2)))
    grads = []
    for each in (batch, other):
        module.zero_grad()
        loss, _, count = masked_loss(module._logits(each), each)
        (loss / count).backward()
        grads.append(module.agent.head.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


def test_biases_norms_and_embeddings_are_not_decayed():
    network = small_network()
    decayed, kept = (group["params"] for group in parameter_groups(network, 0.1))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all(parameter.ndim > 1 for parameter in decayed)
    of_kept = {names[id(parameter)] for parameter in kept}
    assert {"embed_action.weight", "embed_return.weight", "embed_time.weight", "norm.weight"} <= of_kept
    assert not any(name.startswith("encoder.") for name in of_kept), "it is frozen"
    linear = [m.weight for n, m in network.named_modules() if isinstance(m, nn.Linear) and not n.startswith("encoder")]
    assert len(decayed) == len(linear) - 2, "all matrices but those of return and time"
    assert len(decayed) + len(kept) == sum(parameter.requires_grad for parameter in network.parameters())


def test_the_rate_rises_and_falls(tmp_path):
    module = DecisionTransformer(small_network(), learning_rate=1.0, warmup_steps=10, compile=False)
    module._trainer = SimpleNamespace(estimated_stepping_batches=100)
    module._trainer.datamodule = None
    found = module.configure_optimizers()
    optimiser, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(0.98, abs=0.01)
    assert rates[50] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    module._trainer.estimated_stepping_batches = float("inf")
    with pytest.raises(ValueError, match="has no end"):
        module.configure_optimizers()


def test_what_does_not_go_together_is_refused(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    weights = str(tmp_path / "agent.safetensors")
    module = DecisionTransformer(small_network(), encoder_weights=weights, compile=False)
    data = SimpleNamespace(context=CONTEXT, frames=False, features=SimpleNamespace(agent=weights, tap="fc2"))
    data.agents, data.discount = {weights: SimpleNamespace(weights_hash=module.encoder_hash)}, GAMMA
    module._trainer = SimpleNamespace(datamodule=data)
    module.setup("fit")
    data.discount = 0.99
    with pytest.raises(ValueError, match=r"discount 0\.99: .* as if it were 0\.98"):
        module.setup("fit")
    data.discount, data.features.tap = GAMMA, "fc1"
    with pytest.raises(ValueError, match=r"fc1 of .*set the agent's encoder_tap"):
        module.setup("fit")
    data.features = None
    with pytest.raises(ValueError, match="neither frames nor features"):
        module.setup("fit")
    checkpoint: dict[str, object] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="encoder began as another agent"):
        module.on_load_checkpoint({"encoder_hash": "0"})
    data.context = CONTEXT + 1
    with pytest.raises(ValueError, match="more than the network's 5"):
        module.setup("fit")
    with pytest.raises(ValueError, match="learning_rate 0"):
        DecisionTransformer(small_network(), learning_rate=0)
