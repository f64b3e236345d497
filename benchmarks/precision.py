"""Frames a second of the shipped agent in bfloat16 against float32: which of the two a machine should be given.

`default` is what this project takes on this machine unless told otherwise. An older processor can be imitated by
oneDNN's ONEDNN_MAX_CPU_ISA (AVX2, AVX512_CORE), which `default` does not see. The floor is what the network's
arithmetic alone would take at the speed of a large matrix product in the faster of the two.
"""

import argparse

import torch
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import machine, peak_flops, report, say
from networks import DEFAULT_PRECISION, Precision, TappedAgent, autocast, load_agent


def frames_per_second(agent: TappedAgent, frames: torch.Tensor, precision: Precision, seconds: float) -> float:
    """Of whole forward passes, by the median time of one."""

    def forward() -> None:
        with torch.inference_mode(), autocast(precision, frames.device):
            agent(frames)

    timer = Timer("forward()", globals={"forward": forward}, num_threads=torch.get_num_threads())
    return len(frames) / timer.blocked_autorange(min_run_time=seconds).median


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="pretrained/heist_easy_customcnn_seed0.safetensors")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="at least so long in each precision")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    agent = load_agent(arguments.agent).to(device)
    frames = torch.randint(256, (arguments.batch_size, 64, 64, 3), dtype=torch.uint8, device=device)
    say(f"batches of {len(frames)} frames in float32, then in bfloat16")
    baseline = frames_per_second(agent, frames, "fp32", arguments.seconds)
    ours = frames_per_second(agent, frames, "bf16", arguments.seconds)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        agent(frames[:1])
    faster = torch.bfloat16 if ours > baseline else torch.float32
    report(
        name="precision",
        ours=round(ours),
        baseline=round(baseline),
        ratio=round(ours / baseline, 2),
        unit="frames/s",
        floor=round(peak_flops(device, faster) / counter.get_total_flops()),
        default=DEFAULT_PRECISION,
        machine=machine(device),
    )


if __name__ == "__main__":
    main()
