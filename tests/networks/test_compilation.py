import os
import subprocess
import sys

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from networks import CustomCNN
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


class Logits(nn.Module):
    """A network inside a module, as a LightningModule has it."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = CustomCNN()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.agent(frames).logits


def test_in_distributed_training_it_is_one_graph_as_in_play(monkeypatch):
    """With torch's own setting it is cut in two there."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(len(graph.graph.nodes))
        return graph

    compile_network = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_network(self, **options, backend=count))
    torch._dynamo.reset()
    module = Logits()
    frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):  # torch's own; what it was before is put back
            assert compile_in_place(module.agent)
            DistributedDataParallel(module)(frames).sum().backward()
    finally:
        distributed.destroy_process_group()
        torch._dynamo.reset()
    with torch.no_grad():
        module.agent(frames)
    assert len(graphs) == 2
    assert graphs[0] == graphs[1]


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
