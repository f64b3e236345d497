"""Seconds to fit linear probes, 12 taps x 12 targets of the shipped agent, against scikit-learn one pair at a time.

Ours is `LinearProbe` in the flat form under a Trainer: activations of all taps in one pass over the recorded frames,
then every tap with all targets down the path of penalties, chosen on validation levels. Recording the frames by play
comes before and is not timed; the controls are timed apart. The baseline is `LogisticRegression` (or `Ridge`) with its
own defaults, on the same standardised features of a few pairs, down the same path until validation gains nothing.
The floor is the arithmetic of one evaluation of loss and
gradient on all frames for each tap, at the speed of a large float32 matrix product.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from benchmarks.measure import Stopwatch, machine, peak_flops, report, say
from commands import quieten
from datamodules import ProbeDataModule
from environments.heist import ClassTarget, choose_targets
from lightning_modules import LinearProbe

TARGETS = [
    *("target", "pursued", "next_direction", "action", "after_target", "wall_between"),
    *("path_length", "euclidean_distance", "steps_to_pickup", "straight_length", "target_cell", "player_cell"),
]


def ours(data: ProbeDataModule, shuffled: bool) -> tuple[LinearProbe, Stopwatch]:
    """Fit everything; the watch has the seconds of the activations and of the fits."""
    watch = Stopwatch(torch.device("cpu"))
    module = LinearProbe(targets=TARGETS, forms=("flat",), shuffled=shuffled)
    data.examples = watch.timed("activations", data.examples)  # type: ignore[method-assign]
    module.training_step = watch.timed("fits", module.training_step)  # type: ignore[method-assign]
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module, watch


def baseline(data: ProbeDataModule, module: LinearProbe, tap: str, target: str) -> float:
    """Seconds of scikit-learn for one pair; says how its validation score compares with ours."""
    from sklearn.linear_model import LogisticRegression, Ridge

    examples = data.examples("agent", ("training", "validation"))[tap]
    (chosen,) = choose_targets([target])
    readout = module.readout(tap)
    x, held_out = (examples[split].activations.flatten(1).float().numpy() for split in ("training", "validation"))
    y, answers = (chosen.read(examples[split].labels) for split in ("training", "validation"))
    is_class = isinstance(chosen, ClassTarget)
    known, held_known = (v >= 0 if is_class else np.isfinite(v).all(1) for v in (y, answers))
    mean, std = x.mean(0), x.std(0)
    std[std == 0] = 1
    x, held_out = (x - mean) / std, (held_out - mean) / std
    rows = int(known.sum())
    best, models, start = -np.inf, [], time.perf_counter()
    for strength in module.strengths:
        model: Any = LogisticRegression(C=1 / (strength * rows), max_iter=1_000) if is_class else Ridge(strength * rows)
        models.append(model.fit(x[known], y[known]))
        if is_class:
            chances = model.predict_log_proba(held_out[held_known])
            score = chances[np.arange(len(chances)), np.searchsorted(model.classes_, answers[held_known])].mean()
        else:
            score = model.score(held_out[held_known], answers[held_known])
        if score <= best:
            break
        best = score
    seconds = time.perf_counter() - start
    model = models[-2] if len(models) > 1 else models[0]
    with torch.no_grad():
        scores = readout(examples["validation"].activations)[:, readout.columns(target)].numpy()
    if is_class:
        agreed = float((scores.argmax(1) == model.predict(held_out))[held_known].mean())
        say(f"{tap} {target}: scikit-learn {seconds:.1f} s; the same answer on {agreed:.4f} of validation frames")
    else:
        say(f"{tap} {target}: scikit-learn {seconds:.1f} s")
    return seconds


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="pretrained/heist_easy_customcnn_seed0.safetensors")
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--max_features", type=int, default=2_048, help="of a flattened map, mean-pooled to these")
    parser.add_argument("--cache_dir", default=".cache/activations")
    parser.add_argument("--controls", action="store_true", help="time the controls as well")
    parser.add_argument(
        "--pairs", nargs="+", default=["conv4a:target", "fc1:next_direction", "fc1:target_cell"],
        help="what scikit-learn fits, TAP:TARGET",
    )  # fmt: skip
    arguments = parser.parse_args()
    quieten()

    def data(*controls: Any) -> ProbeDataModule:
        return ProbeDataModule(
            arguments.agent,
            num_frames=arguments.frames,
            validation_frames=max(64, arguments.frames // 8),
            test_frames=64,
            max_features=arguments.max_features,
            controls=controls,
            cache_dir=arguments.cache_dir,
        )

    say(f"recording {arguments.frames} frames, where they are not there yet")
    made = data()
    made.prepare_data()
    module, watch = ours(made, shuffled=False)
    pairs = len(made.subjects) * len(TARGETS)
    total = round(sum(watch.seconds.values()), 1)  # before the baseline reads activations again
    parts = {name: round(seconds, 1) for name, seconds in watch.seconds.items()}
    say(f"{pairs} pairs: {parts}")
    if arguments.controls:
        _, controls = ours(data("pixels", "pixels_pca", "random_agent"), shuffled=True)
        parts["controls"] = round(sum(controls.seconds.values()) - sum(watch.seconds.values()), 1)
    seconds = [baseline(made, module, *pair.split(":")) for pair in arguments.pairs]
    mine = watch.seconds["fits"] / pairs
    features = sum(int(torch.Size(subject.reduced).numel()) for subject in made.subjects)
    outputs = sum(map(len, module.readout(made.subjects[0].tap).outputs.values()))
    flops = 4 * arguments.frames * features * outputs
    report(
        name="probes",
        ours=round(mine, 3),
        baseline=round(float(np.mean(seconds)), 3),
        ratio=round(float(np.mean(seconds)) / mine, 1),
        unit="seconds for one tap and target (lower is better; ratio: baseline over ours)",
        floor=round(flops / peak_flops(torch.device("cpu"), torch.float32) / pairs, 4),
        seconds=parts,
        total=total,
        frames=arguments.frames,
        max_features=arguments.max_features,
        pairs=pairs,
        machine=machine(torch.device("cpu")),
    )


if __name__ == "__main__":
    main()
