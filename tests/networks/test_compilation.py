import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from networks.compilation import compile_in_place


def test_a_compiled_network_keeps_its_keys_and_its_outputs():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.randn(3, 4)
    keys, expected = list(network.state_dict()), network(inputs)
    assert compile_in_place(network)
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(inputs), expected)


def test_where_it_will_run_counts_and_not_where_it_is_built(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler"):
        assert not compile_in_place(nn.Linear(2, 2))
    assert compile_in_place(nn.Linear(2, 2), device=torch.device("cuda"))


def test_without_a_compiler_the_network_goes_on_eagerly_and_says_so_once():
    """In a process of its own, for torch looks for a compiler once."""
    script = (
        "import torch; from networks.compilation import compile_in_place\n"
        "network = torch.nn.Linear(2, 2)\n"
        "assert not compile_in_place(network)\n"
        "print(tuple(network(torch.ones(1, 2)).shape))"
    )
    environment = {**os.environ, "CXX": "/nowhere/g++", "PATH": os.path.dirname(sys.executable)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 2)"
    assert run.stderr.count("no C++ compiler") == 1
