"""The decision transformer against a naive one, its own definition of time, and its cache."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from networks import (
    GAMMA,
    AgentOutput,
    CustomCNN,
    DecisionTransformer,
    ResidualImpala,
    TrajectoryWindow,
    load_agent,
    load_network,
    next_return,
    save_weights,
)

STEPS = 6


@pytest.fixture(scope="module")
def net() -> DecisionTransformer:
    torch.manual_seed(0)
    made = DecisionTransformer(width=16, depth=2, heads=2, context=STEPS, encoder_tap="fc1").eval()
    with torch.no_grad():  # as it begins, it hardly looks at anything
        for name, parameter in made.named_parameters():
            if not name.startswith("encoder."):
                parameter.mul_(6).add_(torch.randn_like(parameter), alpha=0.02)
    return made


def windows(steps: int = STEPS, count: int = 2, seed: int = 1) -> TrajectoryWindow:
    draw = torch.Generator().manual_seed(seed)
    return TrajectoryWindow(
        torch.randint(0, 256, (count, steps, 64, 64, 3), dtype=torch.uint8, generator=draw),
        torch.randint(0, 15, (count, steps), generator=draw),
        10 * torch.rand(count, steps, generator=draw),
        torch.arange(steps).expand(count, steps) + torch.tensor([[0], [7]])[:count],
        torch.ones(count, steps, dtype=torch.bool),
    )


def naive_logits(net: DecisionTransformer, window: TrajectoryWindow) -> Tensor:
    """Everything above the encoder, token by token and head by head, from the definition."""
    batch, steps = window.actions.shape
    logits = torch.empty(batch, steps, net.num_actions)
    for row in range(batch):
        stream: list[Tensor] = []
        for t in range(steps):
            angles = [int(window.timesteps[row, t]) / 10_000 ** (i / (net.width / 2)) for i in range(net.width // 2)]
            time = net.embed_time.weight @ torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
            before = int(window.actions[row, t - 1]) if t else net.num_actions
            acts = net.encoder.agent(window.frames[row, t : t + 1], record=["fc1"]).activations["fc1"][0]
            stream.append(net.embed_action.weight[before] + time)
            asked = window.returns_to_go[row, t] / 10
            stream.append(net.embed_return.weight[:, 0] * asked + net.embed_return.bias + time)
            stream.append(net.embed_observation(acts) + time)
        for block in net.blocks:
            size = net.width // net.heads
            new = []
            for place, token in enumerate(stream):
                first = max(0, place // 3 - net.context + 1) * 3
                rows = [block.queries_keys_values(block.attention_norm(other)) for other in stream[first : place + 1]]
                read = []
                for head in range(net.heads):
                    part = slice(head * size, (head + 1) * size)
                    query = rows[-1][: net.width][part]
                    weights = [math.exp(float(query @ r[net.width : 2 * net.width][part]) / size**0.5) for r in rows]
                    values = [r[2 * net.width :][part] for r in rows]
                    read.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
                new.append(token + block.attention_out(torch.cat(read)))
            stream = [x + block.mlp_out(functional.gelu(block.mlp_in(block.mlp_norm(x)))) for x in new]
        for t in range(steps):
            logits[row, t] = net.head(net.norm(stream[3 * t + 2]))
    return logits


def play(net: DecisionTransformer, window: TrajectoryWindow, **arguments: object) -> list[AgentOutput]:
    """The window's steps one after another through the cache, which is made to ask for the window's returns."""
    slots = np.arange(len(window.actions))
    player = net.player(len(slots), **arguments)
    player.begin(slots)
    found = []
    for t in range(window.actions.shape[1]):
        player._asked = window.returns_to_go[:, t].clone()
        found.append(player(window.frames[:, t], slots))
        player.took(slots, window.actions[:, t].numpy())
    return found


def begun(window: TrajectoryWindow) -> TrajectoryWindow:
    """The same steps as the first of their episodes."""
    return window._replace(timesteps=torch.arange(window.actions.shape[1]).expand_as(window.actions))


@torch.no_grad()
@pytest.mark.parametrize("steps", [STEPS, 9])
def test_logits_are_those_of_a_naive_transformer(net: DecisionTransformer, steps: int) -> None:
    window = windows(steps)
    torch.testing.assert_close(net(window).logits, naive_logits(net, window), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("part", ["frames", "returns_to_go", "actions"])
def test_a_later_token_never_changes_an_earlier_output(net: DecisionTransformer, part: str) -> None:
    window, taps = windows(), ("resid2.action", "resid2.return", "resid2.observation", "attention2")
    other = windows(seed=2)
    before = net(window, record=taps)
    for t in range(STEPS):
        changed = getattr(window, part).clone()
        changed[:, t:] = getattr(other, part)[:, t:]
        after = net(window._replace(**{part: changed}), record=taps)
        first = t + 1 if part == "actions" else t  # an action is a token of the step after
        assert torch.equal(before.logits[:, :first], after.logits[:, :first])
        for tap in taps:
            assert torch.equal(before.activations[tap][:, :first], after.activations[tap][:, :first])
        if first < STEPS:
            assert (before.logits[:, first:] != after.logits[:, first:]).any(), "and later ones do see it"
        if part == "frames":  # within a step: the observation comes last
            assert torch.equal(before.activations["resid2.return"][:, t], after.activations["resid2.return"][:, t])


@torch.no_grad()
def test_padding_never_changes_an_output(net: DecisionTransformer) -> None:
    window = windows()
    short = TrajectoryWindow(*(field[:, :4] for field in window))
    mask = window.mask.clone()
    mask[:, 4:] = False
    returns, actions = window.returns_to_go.clone(), window.actions.clone()
    returns[:, 4:], actions[:, 4:] = torch.nan, -1
    padded = net(window._replace(mask=mask, returns_to_go=returns, actions=actions)).logits[:, :4]
    torch.testing.assert_close(padded, net(short).logits)
    assert padded.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("steps", [STEPS, 3 * STEPS + 2])
def test_the_cache_equals_one_pass_over_the_episode(net: DecisionTransformer, steps: int) -> None:
    """Within the context plain causal attention, beyond it a banded mask, which the naive transformer confirms."""
    window, taps = begun(windows(steps)), ("resid1.action", "mlp2.observation", "attention2", "encoder.conv3a")
    whole, played = net(window, record=taps), play(net, window, record=taps)
    for t, step in enumerate(played):
        torch.testing.assert_close(step.logits, whole.logits[:, t], rtol=1e-4, atol=1e-5)
        for tap in ("resid1.action", "mlp2.observation", "encoder.conv3a"):
            torch.testing.assert_close(step.activations[tap], whole.activations[tap][:, t], rtol=1e-4, atol=1e-5)
        first = max(0, t + 1 - STEPS) * 3
        pattern = whole.activations["attention2"][:, t, :, :, first : 3 * (t + 1)]
        torch.testing.assert_close(step.activations["attention2"][..., : pattern.shape[-1]], pattern)
        assert not step.activations["attention2"][..., pattern.shape[-1] :].any()
    if steps > STEPS:
        last = net(TrajectoryWindow(*(field[:, -STEPS:] for field in window))).logits[:, -1]
        assert not torch.allclose(last, whole.logits[:, -1], atol=1e-4), "what dropped steps told others lives on"


@torch.no_grad()
def test_slots_at_different_steps_do_not_meet(net: DecisionTransformer) -> None:
    window = begun(windows(9))
    alone = [step.logits for step in play(net, window)]
    player, both = net.player(3), np.array([0, 2])
    player.begin(np.arange(3))
    started = {0: 0, 2: 4}
    for t in range(9):
        slots = np.array([slot for slot in both if t >= started[slot]])
        if t == 4:
            player.begin(np.array([2]))
        rows, steps = [int(slot > 0) for slot in slots], [t - started[slot] for slot in slots]
        for slot, row, step in zip(slots, rows, steps, strict=True):
            player._asked[slot] = window.returns_to_go[row, step]
        logits = player(torch.stack([window.frames[r, s] for r, s in zip(rows, steps, strict=True)]), slots).logits
        player.took(slots, np.array([int(window.actions[r, s]) for r, s in zip(rows, steps, strict=True)]))
        for index, (row, step) in enumerate(zip(rows, steps, strict=True)):
            torch.testing.assert_close(logits[index], alone[step][row], rtol=1e-4, atol=1e-5)


def test_what_is_asked_for_grows_towards_the_gem() -> None:
    """9.5 is 2.54 steps away: 9.5, 9.5 / .98, 9.5 / .98^2, and then a gem's 10."""
    asked = [torch.tensor([9.5, 10.0, 0.0])]
    for _ in range(4):
        asked.append(next_return(asked[-1]))
    by_hand = [9.5, 9.69387755, 9.89171179, 10.0, 10.0]
    torch.testing.assert_close(torch.stack(asked)[:, 0], torch.tensor(by_hand))
    assert torch.stack(asked)[:, 1].eq(10).all(), "never more than a gem"
    assert not torch.stack(asked)[:, 2].any(), "nothing asked for stays nothing"
    assert GAMMA == 0.98


@torch.no_grad()
def test_a_player_asks_for_what_it_is_told(net: DecisionTransformer) -> None:
    window = begun(windows(3))
    returns = torch.tensor([[5.0, 5 / 0.98, 5 / 0.98**2]]).expand(2, 3)
    player, slots = DecisionTransformer.player(net, 2), np.arange(2)
    net.asked_return = 5.0
    try:
        player = net.player(2)
        player.begin(slots)
        for t in range(3):
            logits = player(window.frames[:, t], slots).logits
            player.took(slots, window.actions[:, t].numpy())
    finally:
        net.asked_return = 10.0
    torch.testing.assert_close(logits, net(window._replace(returns_to_go=returns)).logits[:, 2], rtol=1e-4, atol=1e-5)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, acts: Tensor) -> Tensor:
        return acts * self.factor


@torch.no_grad()
def test_taps_have_the_shapes_they_state_and_looking_changes_nothing(net: DecisionTransformer) -> None:
    window = windows()
    output = net(window, record=tuple(net.taps))
    assert {name: tuple(acts.shape[2:]) for name, acts in output.activations.items()} == net.taps
    seen = [name for name in net.taps if not name.startswith("attention")]
    plain = net(window)
    assert torch.equal(plain.logits, net(window, record=seen).logits)
    assert torch.equal(plain.logits, net(window, edits=[(name, nn.Identity()) for name in seen]).logits)
    torch.testing.assert_close(plain.logits, output.logits)  # an attention pattern is computed another way
    patterns = [name for name in net.taps if name.startswith("attention")]
    looked = net(window, record=patterns).logits
    assert torch.equal(looked, net(window, edits=[(name, nn.Identity()) for name in patterns]).logits)
    totals = output.activations["attention1"].sum(-1)
    torch.testing.assert_close(totals, torch.ones_like(totals))


@torch.no_grad()
def test_an_edit_changes_what_comes_after_its_tap_and_nothing_else(net: DecisionTransformer) -> None:
    window, taps = windows(), tuple(net.taps)
    clean = net(window, record=taps).activations
    for tap in taps:
        edited = net(window, record=taps, edits=[(tap, Scale(0.5))]).activations
        torch.testing.assert_close(edited[tap], clean[tap] * 0.5)
        before = taps[: taps.index(tap)]
        beside = [name for name in before if name.partition(".")[0] != tap.partition(".")[0]]
        assert all(torch.equal(edited[name], clean[name]) for name in beside), tap
        reads = not tap.startswith(("resid2.action", "resid2.return", "mlp2.action", "mlp2.return"))
        assert torch.equal(edited["logits"], clean["logits"]) != reads, tap
    played = play(net, begun(window), edits=[("resid1.observation", Scale(0.0)), ("attention2", Scale(0.5))])
    whole = net(begun(window), edits=[("resid1.observation", Scale(0.0)), ("attention2", Scale(0.5))])
    torch.testing.assert_close(played[-1].logits, whole.logits[:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_pass_without_outputs_ends_at_its_deepest_tap(net: DecisionTransformer) -> None:
    ran: list[str] = []
    hooks = [layer.register_forward_hook(lambda *_, n=name: ran.append(n)) for name, layer in net.named_modules()]
    output = net(windows(), record=["mlp1.return"], outputs=False)
    for hook in hooks:
        hook.remove()
    assert output.logits is None
    assert "blocks.0.mlp_in" in ran
    assert not any(name.startswith(("blocks.1", "head")) for name in ran)


@torch.no_grad()
def test_features_computed_before_take_the_place_of_frames(net: DecisionTransformer) -> None:
    window = windows()
    features = net.encode(window.frames)
    blind = window._replace(frames=torch.zeros_like(window.frames))
    torch.testing.assert_close(net(blind, features=features).logits, net(window).logits)
    with pytest.raises(ValueError, match="give frames"):
        net(blind, features=features, record=["encoder.conv4a"])


@torch.no_grad()
def test_cloning_sees_one_frame(net: DecisionTransformer) -> None:
    cloning = DecisionTransformer(width=16, depth=1, heads=2, context=1, tokens=["observation"]).eval()
    window = windows()
    one = TrajectoryWindow(*(field[:, 3:4] for field in window))
    torch.testing.assert_close(cloning(window).logits[:, 3], cloning(one).logits[:, 0])
    assert "resid1.return" not in cloning.taps
    for arguments in ({"tokens": ["return"]}, {"tokens": ["observation", "return"]}, {"width": 15}, {"context": 0}):
        with pytest.raises(ValueError, match=r"must be|at least 1"):
            DecisionTransformer(**arguments)
    with pytest.raises(ValueError, match="no agent 'ResNet'"):
        DecisionTransformer(encoder="ResNet")


def test_an_encoder_is_taken_from_an_agent_and_frozen() -> None:
    torch.manual_seed(3)
    agent, window = CustomCNN(), windows(2)
    net = DecisionTransformer(width=16, depth=1, heads=2, encoder_tap="fc2", frozen_encoder=True)
    net.take_encoder(agent)
    seen = agent(window.frames.flatten(0, 1), record=["fc2"]).activations["fc2"]
    torch.testing.assert_close(net.encode(window.frames).flatten(0, 1), seen)
    net(window).logits.sum().backward()
    assert not any(parameter.grad is not None for parameter in net.encoder.parameters())
    free = DecisionTransformer(width=16, depth=1, heads=2, encoder_tap="conv4a")
    free(window).logits.square().sum().backward()
    grown = {name for name, parameter in free.encoder.agent.named_parameters() if parameter.grad is not None}
    assert grown == {f"conv{layer}.{part}" for layer in ("1a", "2a", "2b", "3a", "4a") for part in ("weight", "bias")}
    with torch.inference_mode():
        DecisionTransformer(width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="not a CustomCNN"):
        DecisionTransformer(encoder="ResidualImpala", encoder_tap="fc1").take_encoder(agent)
    otherwise_begun = CustomCNN(initialise_centred=False)
    net.take_encoder(otherwise_begun)
    assert torch.equal(net.encoder.agent.fc1.weight, otherwise_begun.fc1.weight)
    with pytest.raises(ValueError, match=r"default sizes, .* has num_actions 9, not 15: take another"):
        net.take_encoder(CustomCNN(num_actions=9))
    wide = ResidualImpala(width_scale=2, initialise_centred=False)
    with pytest.raises(ValueError, match="has width_scale 2, not 1: take another"):
        DecisionTransformer(encoder="ResidualImpala", encoder_tap="fc1").take_encoder(wide)


def test_saved_and_loaded_it_is_the_same(net: DecisionTransformer, tmp_path: Path) -> None:
    path, window = tmp_path / "dt.safetensors", windows()
    written = save_weights(path, net, {"note": "x"})
    loaded = load_network(path)
    assert isinstance(loaded, DecisionTransformer)
    assert (loaded.weights_hash, loaded.metadata["note"]) == (written, "x")
    assert loaded.config() == net.config()
    with torch.no_grad():
        assert torch.equal(loaded(window).logits, net(window).logits)
    with pytest.raises(ValueError, match="DecisionTransformer, which needs to know what went before"):
        load_agent(path)
