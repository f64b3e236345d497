from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from networks import CustomCNN, LinearReadout, load_readout, save_weights
from networks.linear_readout import FORMS, reduced_shape

OUTPUTS = {"colour": ["blue", "green", "red"], "cell": ["x", "y"]}


def readout(form: str = "flat", shape: tuple[int, ...] = (4, 6, 6), reduced: tuple[int, ...] = (4, 3, 3)):
    made = LinearReadout("conv4a", form, shape, reduced, OUTPUTS, ["colour"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape, generator=generator))
        made.bias.copy_(torch.randn(5, generator=generator))
        made.component_mean.copy_(torch.randn(5, generator=generator))
        made.component_std.copy_(torch.rand(5, generator=generator) + 1)
    return made


@pytest.fixture
def acts() -> Tensor:
    return torch.randn(7, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def test_scores_are_products_with_the_pooled_map(acts: Tensor) -> None:
    pooled = functional.avg_pool2d(acts, 2)
    flat, mean, position = (readout(form) for form in FORMS)
    torch.testing.assert_close(flat(acts), pooled.flatten(1) @ flat.weight.T + flat.bias)
    torch.testing.assert_close(mean(acts), acts.mean((2, 3)) @ mean.weight.T + mean.bias)
    maps = functional.conv2d(pooled, position.weight[:, :, None, None], position.bias)
    torch.testing.assert_close(position(acts), maps)


@pytest.mark.parametrize("form", ["flat", "pooled"])
def test_a_step_along_a_direction_moves_the_score_and_its_std_is_that_of_the_component(form: str, acts: Tensor) -> None:
    made = readout(form)
    direction = made.direction("cell", "y")
    assert direction.vector.shape == (4, 6, 6)
    assert float(direction.vector.norm()) == pytest.approx(1, abs=1e-5)
    components = (acts * direction.vector).sum((1, 2, 3))
    scores = made(acts)[:, 4]
    slope = torch.stack([components, torch.ones(7)], 1).pinverse() @ scores
    torch.testing.assert_close(torch.stack([components, torch.ones(7)], 1) @ slope, scores, atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # what a fit would have stored
        made.component_mean[4], made.component_std[4] = (scores - made.bias[4]).mean(), scores.std()
    stored = made.direction("cell", "y")
    assert stored.mean == pytest.approx(float(components.mean()), abs=1e-5)
    assert stored.std == pytest.approx(float(components.std()), abs=1e-5)


def test_a_class_is_read_against_the_others(acts: Tensor) -> None:
    """What raises all classes of a target alike changes no answer and is no part of a direction."""
    made = readout()
    before = made.direction("colour", "green").vector
    with torch.no_grad():
        made.weight[:3] += torch.randn(1, made.weight.shape[1])
    torch.testing.assert_close(made.direction("colour", "green").vector, before, atol=1e-5, rtol=1e-4)


def test_position_directions_are_of_channels() -> None:
    made = readout("position")
    vector = made.direction("cell", "x").vector
    torch.testing.assert_close(vector, made.weight[3].detach() / made.weight[3].norm())


def test_reduced_shapes() -> None:
    assert reduced_shape((16, 64, 64), 2048) == (16, 11, 11)
    assert reduced_shape((32, 8, 8), 2048) == (32, 8, 8)
    assert reduced_shape((512,), 2048) == (512,)
    with pytest.raises(ValueError, match="raise max_features"):
        reduced_shape((512,), 100)


def test_saved_and_loaded(tmp_path: Path, acts: Tensor) -> None:
    made, agent = readout(), CustomCNN()
    agent.weights_hash = "this one"
    path = tmp_path / "flat_conv4a.safetensors"
    save_weights(path, made, {"agent_hash": "this one"})
    loaded = load_readout(path, agent)
    assert torch.equal(loaded(acts), made(acts))
    assert loaded.config() == made.config()
    agent.weights_hash = "another"
    with pytest.raises(ValueError, match="another agent"):
        load_readout(path, agent)
    save_weights(path, agent, {})
    with pytest.raises(ValueError, match="no linear readout"):
        load_readout(path)


def test_what_is_not_read_is_named() -> None:
    made = readout()
    with pytest.raises(ValueError, match="no target 'gem': choose among colour, cell"):
        made.columns("gem")
    with pytest.raises(ValueError, match="no output 'z': choose among x, y"):
        made.direction("cell", "z")
    with torch.no_grad():
        made.weight.zero_()
    with pytest.raises(ValueError, match="reads nothing"):
        made.direction("cell", "x")
