"""An autoencoder trained by two processes (gloo, on the CPU) against one process on the same activations."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from networks import CustomCNN, save_weights
from tests.sae_ranks import STEPS, run

ROOT = Path(__file__).parents[2]
ALIKE = ("learnt", "compiled", "resampled", "frozen", "recorded")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where both ranks have left what they did."""
    out = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(1)
    save_weights(out / "agent.safetensors", CustomCNN(), {})
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "tests/sae_ranks.py"), str(out), str(out / "agent.safetensors")]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost"}
    processes = [
        subprocess.Popen(command, env={**shared, "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)})
        for rank in range(2)  # as Lightning itself would start them
    ]
    assert [process.wait(500) for process in processes] == [0, 0]
    return out


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict]:
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    return run(1, folder, str(folder / "agent.safetensors"))


@pytest.mark.parametrize("name", ALIKE)
def test_ranks_stay_alike(ranks, name):
    one, other = (result[name] for result in ranks)
    for part in ("weights", "firing", "latents"):
        assert one[part].keys() == other[part].keys()
        for key, tensor in one[part].items():
            torch.testing.assert_close(tensor, other[part][key], atol=0, rtol=0, equal_nan=True, msg=f"{part} {key}")
    known = [name for name in one["metrics"] if name.startswith("sae/") and not name.endswith("loss")]
    assert len(known) > 8
    assert [one["metrics"][name] for name in known] == [other["metrics"][name] for name in known]


@pytest.mark.parametrize("way", ["learnt", "compiled"])
def test_two_processes_learn_what_one_does_from_the_same_rows(ranks, alone, way):
    found, expected = ranks[0][way], alone["learnt"]
    for key, tensor in expected["weights"].items():
        torch.testing.assert_close(found["weights"][key], tensor, atol=2e-3, rtol=1e-2, msg=key)
    start = alone["frozen"]["metrics"]["sae/explained_variance"]
    assert expected["metrics"]["sae/explained_variance"] > start + 0.1, "something was learnt"
    for name, value in expected["metrics"].items():
        if not name.endswith("loss"):  # logged by the first rank, of its own rows
            assert found["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


def test_firing_counters_of_frozen_weights_are_equal_exactly(ranks, alone):
    expected = alone["frozen"]["firing"]
    assert int(expected["seen"]) == STEPS * 256
    assert int(expected["counts"].sum()) > 0
    for name, counter in expected.items():
        assert torch.equal(ranks[0]["frozen"]["firing"][name], counter), name


def test_validation_of_recorded_activations_counts_every_frame_once(ranks, alone):
    found, expected = ranks[0]["recorded"]["metrics"], alone["recorded"]["metrics"]
    assert found["sae/validation_frames"] == expected["sae/validation_frames"] == 200
    assert found["sae/validation_levels"] == expected["sae/validation_levels"] > 1
    for name in ("explained_variance", "explained_variance_position", "l0", "l0_inside", "l0_raw", "dead_fraction"):
        assert found[f"sae/{name}"] == pytest.approx(expected[f"sae/{name}"], rel=1e-5), name
    for name, column in alone["recorded"]["latents"].items():
        torch.testing.assert_close(ranks[0]["recorded"]["latents"][name], column, equal_nan=True, msg=name)


def test_ranks_are_fed_different_rows_of_the_cache(ranks):
    """Counters sum over ranks: twice a rank's batch at every step."""
    seen = int(ranks[0]["recorded"]["firing"]["seen"])
    assert seen == 2 * 4 * STEPS
