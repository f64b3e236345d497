"""Windows a second in the training of a decision transformer, and steps a second in its play, against a plain one.

Both train the same sizes on the same windows in memory: width, depth, heads and context of
`configs/decision_transformer.yaml`, with an encoder that learns as well (the headline), and once more on features
computed before (`on_features`); ours through bfloat16 and
compilation, with the optimiser of `lightning_modules.DecisionTransformer`. In play both are full contexts in, and
the plain one has the embeddings of earlier frames: what differs is whether the window is computed anew. `play` leaves
the encoder of the new frame out, `play_with_encoder` counts it. Contestants take turns; figures are of the best round
of each, which a busy machine disturbs least. `floor` is what the arithmetic of training alone would take at the speed
of a large bfloat16 matrix product.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine, peak_flops, report, say, synchronise
from benchmarks.plain_decision_transformer import PlainDecisionTransformer, train_step
from datamodules import TrajectoryBatch
from lightning_modules.decision_transformer import masked_loss, parameter_groups
from networks import DecisionTransformer, TrajectoryWindow, autocast
from networks.compilation import compile_in_place

SIZES = {"width": 128, "depth": 3, "heads": 4, "context": 30}
_FEATURES = 256  # of the encoder's fc1
_RATE = 3e-4


def windows(count: int, steps: int, device: torch.device) -> TrajectoryWindow:
    """Full windows of noise."""
    draw = torch.Generator().manual_seed(0)
    parts = TrajectoryWindow(
        torch.randint(0, 256, (count, steps, 64, 64, 3), dtype=torch.uint8, generator=draw),
        torch.randint(0, 15, (count, steps), generator=draw),
        10 * torch.rand(count, steps, generator=draw),
        torch.arange(steps).expand(count, steps).contiguous(),
        torch.ones(count, steps, dtype=torch.bool),
    )
    return TrajectoryWindow(*(part.to(device) for part in parts))


def best_rates(contestants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Calls a second of each, the best of several rounds in turn, after one call to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()
        call()
    for _ in range(rounds):
        for name, call in contestants.items():
            synchronise(device)
            start = time.perf_counter()
            call()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1 / min(times) for name, times in seconds.items()}


def our_training(network: DecisionTransformer, batch: TrajectoryBatch, device: torch.device) -> Callable[[], object]:
    """A step as the Lightning module and its configuration do it."""
    optimiser = torch.optim.AdamW(parameter_groups(network, 0.1), lr=_RATE, betas=(0.9, 0.95), foreach=True)
    convert_conv2d_weight_memory_format(network, torch.channels_last)
    compile_in_place(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def step() -> None:
        with autocast("bf16", device):
            logits = network(batch.window, features=batch.features).logits
            assert logits is not None
            loss, _, count = masked_loss(logits, batch)
        optimiser.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    return step


def plain_training(network: PlainDecisionTransformer, window: TrajectoryWindow, seen: Tensor) -> Callable[[], object]:
    """A step as the paper's code does it."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    return lambda: train_step(network, optimiser, seen, window.actions, window.returns_to_go, window.timesteps)


def training(batch_size: int, on_features: bool, rounds: int, device: torch.device) -> dict[str, float]:
    """Windows a second of both."""
    window = windows(batch_size, SIZES["context"], device)
    features = torch.randn(batch_size, SIZES["context"], _FEATURES, device=device) if on_features else None
    torch.manual_seed(0)
    ours = DecisionTransformer(**SIZES, frozen_encoder=on_features).to(device)  # type: ignore[arg-type]
    plain = PlainDecisionTransformer(**SIZES, encode=not on_features).to(device)
    seen = window.frames if features is None else features
    rates = best_rates(
        {
            "ours": our_training(ours, TrajectoryBatch(window, {}, features), device),
            "baseline": plain_training(plain, window, seen),
        },
        rounds,
        device,
    )
    return {name: rate * batch_size for name, rate in rates.items()}


@torch.no_grad()
def playing(slots: int, encode: bool, rounds: int, device: torch.device) -> dict[str, float]:
    """Environment steps a second of both, full contexts in."""
    steps = SIZES["context"]
    window = windows(slots, steps, device)
    torch.manual_seed(0)
    ours = DecisionTransformer(**SIZES).to(device).eval()  # type: ignore[arg-type]
    plain = PlainDecisionTransformer(**SIZES, encode=encode).to(device).eval()
    features = torch.randn(slots, 1, _FEATURES, device=device)
    player, every = ours.player(slots), np.arange(slots)
    player.begin(every)
    frames, actions = window.frames[:, 0], np.zeros(slots, dtype=np.int64)
    encoder = ours.encode
    if not encode:
        ours.encode = lambda *_: features  # type: ignore[method-assign]

    def with_cache() -> None:
        with autocast("bf16", device):
            player(frames, every)
        player.took(every, actions)

    embeddings = torch.randn(slots, steps, SIZES["width"], device=device)

    def anew() -> None:
        seen = frames[:, None].permute(0, 1, 4, 2, 3).float() / 255 if encode else features
        embeddings[:, :-1] = embeddings[:, 1:].clone()
        embeddings[:, -1:] = plain.embed(seen)
        plain.think(embeddings, window.actions, window.returns_to_go, window.timesteps)[:, -1]

    for _ in range(steps):
        with_cache()
    rates = best_rates({"ours": with_cache, "baseline": anew}, rounds, device)
    ours.encode = encoder  # type: ignore[method-assign]
    return {name: rate * slots for name, rate in rates.items()}


def flops_per_window(batch_size: int) -> float:
    """Operations of training on one window; a backward pass costs two forward ones."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        DecisionTransformer(**SIZES)(windows(batch_size, SIZES["context"], torch.device("cpu")))  # type: ignore[arg-type]
    return 3 * counter.get_total_flops() / batch_size


def rounded(rates: dict[str, float]) -> dict[str, Any]:
    """The figures of one comparison."""
    return {name: round(rate, 1) for name, rate in rates.items()} | {
        "ratio": round(rates["ours"] / rates["baseline"], 2)
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=16, help="windows of a training step")
    parser.add_argument("--slots", type=int, default=64, help="environments in play")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    say(f"training, {arguments.batch_size} windows of {SIZES['context']} frames a step; ours compiles first")
    whole = training(arguments.batch_size, False, arguments.rounds, device)
    say(f"{rounded(whole)}; the same on features")
    on_features = training(4 * arguments.batch_size, True, arguments.rounds, device)
    say(f"{rounded(on_features)}; play in {arguments.slots} environments")
    play = playing(arguments.slots, False, 4 * arguments.rounds, device)
    with_encoder = playing(arguments.slots, True, 2 * arguments.rounds, device)
    floor = peak_flops(device, torch.bfloat16) / flops_per_window(4)
    report(
        name="decision_transformer",
        **rounded(whole),
        unit="windows/s",
        floor=round(floor, 1),
        on_features=rounded(on_features),
        play=rounded(play),
        play_with_encoder=rounded(with_encoder),
        play_unit="environment steps/s",
        sizes=SIZES | {"batch_size": arguments.batch_size, "slots": arguments.slots},
        machine=machine(device),
    )


if __name__ == "__main__":
    main()
