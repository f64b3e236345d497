import pytest
import torch

from networks import ChannelEdit, CustomCNN, load_agent, load_edit, save_weights
from networks.channel_edit import RandomDirection, ShamPosition, on_random_units


@pytest.fixture
def edit() -> ChannelEdit:
    edit = ChannelEdit(8).requires_grad_(False)
    edit.scale[2], edit.shift[5] = -0.5, 2.0
    return edit


def test_scales_and_shifts_the_units_that_it_names(edit):
    acts = torch.rand(2, 8, 4, 4)
    expected = acts.clone()
    expected[:, 2] *= 0.5
    expected[:, 5] += 2
    torch.testing.assert_close(edit(acts), expected)
    torch.testing.assert_close(edit(acts[:, :, 0, 0]), expected[:, :, 0, 0])
    assert edit.units.tolist() == [2, 5]


def test_controls_are_as_large_and_elsewhere(edit):
    acts = torch.rand(2, 8, 4, 6)
    change = edit(acts) - acts
    random = RandomDirection(edit, 3)(acts) - acts
    torch.testing.assert_close(random.norm(dim=1), change.norm(dim=1))
    assert not torch.allclose(random, change)
    sham = ShamPosition(edit)(acts) - acts
    for row in range(4):
        for column in range(6):
            torch.testing.assert_close(sham[..., (row + 2) % 4, (column + 3) % 6], change[..., row, column])
    moved = on_random_units(edit, 1)
    assert len(moved.units) == 2
    assert not set(moved.units.tolist()) & {2, 5}
    assert sorted(moved.shift.tolist()) == sorted(edit.shift.tolist())


def test_is_loaded_as_it_was_saved_and_refused_where_it_does_not_fit(edit, tmp_path):
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    agent = load_agent(tmp_path / "agent.safetensors")
    wide = ChannelEdit(32).requires_grad_(False)
    wide.shift[3] = 1.5
    known = {"kind": "ChannelEdit", "agent_hash": agent.weights_hash, "tap": "conv2b", "entity": "gem"}
    save_weights(tmp_path / "edit.safetensors", wide, known)
    entity, tap, loaded = load_edit(tmp_path / "edit.safetensors", agent)
    assert (entity, tap) == ("gem", "conv2b")
    assert torch.equal(loaded.shift, wide.shift)
    save_weights(tmp_path / "narrow.safetensors", edit, known)
    with pytest.raises(ValueError, match="edits 8 units"):
        load_edit(tmp_path / "narrow.safetensors", agent)
    with pytest.raises(ValueError, match="holds no channel edit"):
        load_edit(tmp_path / "agent.safetensors", agent)
