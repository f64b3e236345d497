"""Both precisions are timed on the same network."""

import torch

from benchmarks.precision import frames_per_second
from networks import CustomCNN


def test_frames_a_second_are_of_whole_batches() -> None:
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    for precision in ("fp32", "bf16"):
        assert frames_per_second(CustomCNN().eval(), frames, precision, 0.01) > 0
