from pathlib import Path

import pytest
import torch

from networks import ChannelEdit, CustomCNN, ResidualImpala, load_agent, load_edit, save_weights
from networks.channel_edit import MixingEdit, RandomDirection, RepaintEdit, ShamPosition, on_random_units


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
    there = RandomDirection(edit, 3).to("meta")  # its direction moves to the device with the edit
    assert there(torch.rand(2, 8, 4, 6, device="meta")).device.type == "meta"


def test_on_random_units_all_but_those_that_change_places_stay_as_they_are():
    edit = RepaintEdit(32, 2, 1).requires_grad_(False)
    edit.read.weight[:] = torch.arange(32.0).view(1, 32, 1, 1)
    edit.write.weight[25] = 1.0
    moved = on_random_units(edit, 0)
    (unit,) = moved.units.tolist()
    read = moved.read.weight[0, :, 0, 0].tolist()
    assert unit != 25
    assert (read[25], read[unit]) == (unit, 25)
    assert all(read[other] == other for other in range(32) if other not in (unit, 25))


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
    with pytest.raises(
        ValueError, match=r"edit.safetensors edits 32 units of conv2b, of which this ResidualImpala has 0"
    ):
        load_edit(tmp_path / "edit.safetensors", ResidualImpala())
    with pytest.raises(ValueError, match="holds no edit of channels"):
        load_edit(tmp_path / "agent.safetensors", agent)


def mixing(units: int = 6, rank: int = 2) -> MixingEdit:
    torch.manual_seed(4)
    edit = MixingEdit(units, rank)
    with torch.no_grad():
        edit.write.normal_()
        edit.shift.normal_()
    return edit.requires_grad_(False)


def test_a_mixing_edit_is_the_same_affine_map_at_every_position() -> None:
    edit = mixing()
    acts = torch.randn(2, 6, 3, 5, generator=torch.Generator().manual_seed(0))
    edited = edit(acts)
    for place in ((0, 0), (2, 4)):
        here = acts[:, :, *place]
        by_hand = here + (here @ edit.read.T) @ edit.write.T + edit.shift
        torch.testing.assert_close(edited[:, :, *place], by_hand)
        torch.testing.assert_close(edit(here), by_hand)
    fresh = MixingEdit(6, 6)
    assert torch.equal(fresh(acts), acts)
    assert fresh.units.tolist() == []


@pytest.mark.parametrize("kind", ["channels", "mixing"])
def test_the_same_edit_of_other_units_is_that_of_renamed_units(kind: str) -> None:
    edit: ChannelEdit | MixingEdit = mixing()
    if kind == "channels":
        edit = ChannelEdit(6).requires_grad_(False)
        edit.scale[:] = torch.tensor([0.0, 2.0, 0.0, 0.0, -1.0, 0.0])
        edit.shift[:] = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    order = torch.tensor([2, 0, 5, 1, 3, 4])
    acts = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    renamed = torch.empty_like(acts)
    renamed[:, order] = acts
    expected = torch.empty_like(acts)
    expected[:, order] = edit(acts)
    torch.testing.assert_close(edit.on_units(order)(renamed), expected)
    other = on_random_units(edit, 3)
    assert len(other.units) == len(edit.units)
    if kind == "channels":
        assert not set(other.units.tolist()) & set(edit.units.tolist())


def test_a_mixing_edit_comes_back_from_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent, edit = CustomCNN().eval(), mixing(32, 3)
    known = {"kind": "MixingEdit", "tap": "conv4a", "entity": "gem", "agent_hash": ""}
    save_weights(tmp_path / "edit.safetensors", edit, known)
    entity, tap, loaded = load_edit(tmp_path / "edit.safetensors", agent)
    acts = torch.randn(2, 32, 8, 8)
    assert (entity, tap) == ("gem", "conv4a")
    assert torch.equal(loaded(acts), edit(acts))


def repainting(kernel: int) -> RepaintEdit:
    torch.manual_seed(5)
    edit = RepaintEdit(4, 3, kernel)
    with torch.no_grad():
        for parameter in edit.parameters():
            parameter.normal_()
    return edit.requires_grad_(False)


def test_repainting_is_the_same_everywhere_and_sees_no_further_than_its_kernels() -> None:
    edit, acts = repainting(3), torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    moved = edit.change(acts.roll((2, 1), (2, 3)))
    torch.testing.assert_close(moved[..., 5:9, 5:9], edit.change(acts).roll((2, 1), (2, 3))[..., 5:9, 5:9])
    other = acts.clone()
    other[..., 6, 6] += 1
    changed = (edit.change(other) != edit.change(acts)).any(1)[0]
    assert changed[4:9, 4:9].any()
    changed[4:9, 4:9] = False
    assert not changed.any(), "two kernels of side 3 see two positions far"
    fresh = RepaintEdit(4, 2)
    assert torch.equal(fresh(acts), acts)
    assert fresh.units.tolist() == []


def test_repainting_of_single_positions_is_what_its_formula_says() -> None:
    edit, acts = repainting(1), torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    assert edit.read.bias is not None
    assert edit.write.bias is not None
    seen = torch.relu(acts @ edit.read.weight[:, :, 0, 0].T + edit.read.bias)
    torch.testing.assert_close(edit(acts), acts + seen @ edit.write.weight[:, :, 0, 0].T + edit.write.bias)
    torch.testing.assert_close(edit(acts[:, :, None, None])[:, :, 0, 0], edit(acts))


def test_repainting_of_other_units_is_the_same_with_their_places_changed() -> None:
    edit, acts = repainting(3), torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(edit.on_units(order)(acts)[:, order], edit(acts[:, order]))


def test_repainting_may_be_held_to_some_units() -> None:
    edit = RepaintEdit(4, 3, kernel=1, written=[2])
    target = torch.rand(8, 4, 5, 5)
    optimiser = torch.optim.Adam(edit.parameters(), 0.1)
    for _ in range(5):
        optimiser.zero_grad()
        (edit(torch.rand(8, 4, 5, 5)) - target).square().mean().backward()
        optimiser.step()
    acts = torch.rand(2, 4, 5, 5)
    assert edit.units.tolist() == [2]
    loaded = RepaintEdit(**edit.config())
    loaded.load_state_dict(edit.state_dict())
    torch.testing.assert_close(loaded(acts), edit(acts))
    assert loaded.units.tolist() == [2]
