import torch

from interpretability.ablations import UnitAblation, replacements

MAPS = torch.rand(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
MASKS = torch.tensor([[False] * 4, [True, False, False, True]])


def test_takes_away_what_each_trial_names_and_nothing_else():
    acts = torch.rand(3, 4, 3, 3)
    for kind, expected in (("zero", torch.zeros(4, 3, 3)), ("mean", MAPS.mean(0))):
        edit = UnitAblation(MASKS, replacements(kind, MAPS))
        edit.assign(torch.tensor([1, 0, 1]))
        new = edit(acts)
        assert torch.equal(new[1], acts[1])
        for row in (0, 2):
            assert torch.equal(new[row, 1:3], acts[row, 1:3])
            assert torch.allclose(new[row, [0, 3]], expected[[0, 3]])


def test_resamples_all_units_of_a_row_from_one_frame_drawn_anew():
    acts, seen = torch.rand(64, 4, 3, 3), set()
    edit = UnitAblation(MASKS, replacements("resample", MAPS), seed=3)
    for _ in range(2):
        edit.assign(torch.ones(64, dtype=torch.int64))
        new = edit(acts)
        frames = [int((MAPS[:, 0] == row[0]).all((1, 2)).nonzero()) for row in new]
        assert all(torch.equal(MAPS[frame, 3], row[3]) for frame, row in zip(frames, new, strict=True))
        assert set(frames) == set(range(5))
        seen.add(tuple(frames))
    assert len(seen) == 2, "another draw at each pass"
    again = UnitAblation(MASKS, replacements("resample", MAPS), seed=3)
    again.assign(torch.ones(64, dtype=torch.int64))
    edit = UnitAblation(MASKS, replacements("resample", MAPS), seed=3)
    edit.assign(torch.ones(64, dtype=torch.int64))
    assert torch.equal(again(acts), edit(acts))


def test_ablates_neurons_of_a_flat_tap():
    edit = UnitAblation(MASKS, replacements("mean", MAPS[:, :, 0, 0]))
    edit.assign(torch.tensor([1]))
    acts = torch.rand(1, 4)
    assert torch.allclose(edit(acts)[0, [0, 3]], MAPS[:, [0, 3], 0, 0].mean(0))
    assert torch.equal(edit(acts)[0, 1:3], acts[0, 1:3])
