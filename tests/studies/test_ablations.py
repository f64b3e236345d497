from pathlib import Path

import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State
from environments.heist import ENTITIES, cross_maze
from interpretability.choices import play_choices
from interpretability.episodes import first_states, play_episodes
from interpretability.unit_maps import unit_maps
from networks import CustomCNN
from studies import Ablations
from studies.ablation_sets import group_effects, pair_synergy
from studies.ablation_trials import CHANGED, LOST, AblationTrials, Levels
from tests.figures import cut_off
from tests.planted import EitherOr
from tests.saved_subject import save_subject

EASY = EnvironmentSettings()
BLUE, RED = ENTITIES.index("blue_key"), ENTITIES.index("red_key")
SMALL = {
    "tuning_mazes": 2,
    "choice_levels": 2,
    "natural_levels": 1,
    "top_k": 2,
    "groups": 1,
    "random_sets": 2,
    "max_steps": 3,
    "natural_steps": 3,
    "frame_levels": 3,
}


@pytest.fixture(scope="module")
def crosses() -> list[bytes]:
    bases = [State.from_bytes(data) for data in first_states(range(4), EASY)]
    arms = {"left": "blue_key", "right": "red_key", "up": "gem"}
    return [cross_maze(base, arms, length=2).to_bytes() for base in bases]


def planted(cache: Path, maps: torch.Tensor | None = None) -> AblationTrials:
    agent = EitherOr().eval()
    if maps is None:
        maps = unit_maps(agent, "map", torch.randint(256, (6, 64, 64, 3), dtype=torch.uint8))
    return AblationTrials(agent, "map", None, maps, EASY, 0, 8, 30, 10, "fp32", str(cache))


def test_units_that_stand_in_for_each_other_have_no_effect_alone_and_full_synergy(
    crosses: list[bytes], tmp_path: Path
) -> None:
    trials, levels = planted(tmp_path), Levels(crosses)
    clean = trials.clean(levels)
    assert (clean.touched == BLUE).all()
    outcomes = trials.without([[], [0], [1], [2], [0, 1], [0, 2]], "zero", levels)
    assert (outcomes.touched[[0, 1, 2, 3, 5]] == BLUE).all()
    assert (outcomes.touched[4] == RED).all()
    assert list(outcomes.effects(clean)) == [CHANGED]
    singles = outcomes.select([1, 2, 3])
    report = pair_synergy(trials, "zero", [0, 1, 2], 3, 1, singles, clean, levels)
    synergy = {tuple(row[2:4]): row[7:] for row in report.table.rows}
    assert synergy == {(0, 1): [1.0, 1.0, 1.0], (0, 2): [0.0, 0.0, 0.0], (1, 2): [0.0, 0.0, 0.0]}
    assert report.intervals["ablation/pairs/changed_synergy"].value == pytest.approx(1 / 3)
    mean = trials.without([[0, 1]], "mean", levels)
    assert (mean.touched == BLUE).all(), "the mean of noise is seen"


def test_agrees_with_one_ablation_at_a_time(crosses: list[bytes], tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    agent.fc3.weight.data *= 10
    maps = unit_maps(agent, "conv4a", torch.randint(256, (6, 64, 64, 3), dtype=torch.uint8), precision="fp32")
    trials = AblationTrials(agent, "conv4a", None, maps, EASY, 3, 5, 12, 8, "fp32", str(tmp_path))
    sets, levels = [[3], [0, 7, 9]], Levels(crosses, [5, 9])
    outcomes = trials.without(sets, "mean", levels)

    class Naive(torch.nn.Module):
        def forward(self, acts):
            acts = acts.clone()
            for unit in self.units:
                acts[:, unit] = maps[:, unit].mean(0)
            return acts

    edit = Naive()
    known = {"settings": EASY, "edits": [("conv4a", edit)], "seed": 3, "precision": "fp32", "num_environments": 2}
    for row, units in enumerate(sets):
        edit.units = units
        alone = play_choices(agent, crosses, max_steps=12, **known)
        episodes = play_episodes(agent, [5, 9], max_steps=8, **known)
        assert outcomes.touched[row].tolist() == alone.touched.tolist()
        assert outcomes.returns[row].tolist() == episodes.returns.tolist()
        assert outcomes.solved[row].tolist() == episodes.solved.tolist()
    clean = trials.clean(levels)
    assert np.array_equal(outcomes.effects(clean)[LOST], clean.returns - outcomes.returns)


def test_a_group_is_held_against_sets_of_other_units(crosses: list[bytes], tmp_path: Path) -> None:
    maps = torch.zeros(40, 3, 8, 8)
    maps[::2, 0] = maps[::2, 1] = 1  # active together
    maps[::3, 2] = 1
    trials, levels = planted(tmp_path, maps), Levels(crosses)
    clean = trials.clean(levels)
    report = group_effects(trials, "zero", 1, 3, clean, levels)
    assert report is not None
    assert report.table.rows[0][1] in ("0 1", "1 0")
    assert report.table.rows[0][3:6] == [1.0, 1.0, 1.0]
    assert group_effects(planted(tmp_path, maps[:1] * 0), "zero", 1, 3, clean, levels) is None


def test_goes_on_from_the_arms_that_are_done(
    crosses: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, levels = torch.rand(2, 3, 8, 8), Levels(crosses[:2], [7])
    first = planted(tmp_path, maps).without([[0], [0, 1]], "resample", levels)

    def never(*args: object, **named: object) -> None:
        raise AssertionError("played again")

    monkeypatch.setattr("studies.ablation_trials.play_choices", never)
    again = planted(tmp_path, maps).without([[0], [0, 1]], "resample", levels)
    assert np.array_equal(again.touched, first.touched)
    assert np.array_equal(again.solved, first.solved)
    for sets, kind in (([[0], [0, 2]], "resample"), ([[0], [0, 1]], "mean")):
        with pytest.raises(AssertionError, match="played again"):
            planted(tmp_path, maps).without(sets, kind, levels)


def test_what_is_filmed_goes_where_the_counted_play_went(crosses: list[bytes], tmp_path: Path) -> None:
    trials, levels = planted(tmp_path, torch.rand(2, 3, 8, 8)), Levels(crosses)
    for sets, outcomes in (([], trials.clean(levels)), ([[0]], trials.without([[0]], "zero", levels))):
        filmed = trials.choices(crosses, sets, "zero")
        assert np.array_equal(filmed.touched, outcomes.touched[0])
        assert [len(actions) for actions in filmed.actions] == filmed.steps.tolist()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)  # what is kept is kept there
    return save_subject(tmp_path)


def test_writes_singles_pairs_and_groups_of_latents(paths: dict[str, str]) -> None:
    report = Ablations(paths["agent"], tap=None, sae=paths["sae"], **SMALL).run()
    assert len(report.tables["units"].rows) == 3 * 64
    assert len(report.tables["choices"].rows) == 1 + 64
    assert len(report.tables["pairs"].rows) == (1 + 2) * 2
    assert {"units", "choices", "pairs", "groups"} == set(report.figures)
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert np.isfinite(list(report.summary.values())).all()
    for row in report.tables["choices"].rows:
        assert sum(row[2:]) == pytest.approx(1)
    assert "random weights" in report.pages["ablations"]
    assert all(f"../films/{name}.gif" in report.pages["ablations"] for name in report.films)


def test_leaves_the_return_out_and_takes_flat_taps(paths: dict[str, str]) -> None:
    known = SMALL | {"natural_levels": 0, "kinds": ("zero",), "combined": "resample"}
    report = Ablations(paths["agent"], tap="logits", **known).run()
    assert report.tables["units"].columns == ["ablation", "unit", CHANGED, "low", "high"]
    assert "ablation/zero/return_loss" not in report.summary


def test_refuses_what_makes_no_pairs(paths: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="top_k 1"):
        Ablations(paths["agent"], **SMALL | {"top_k": 1})
    with pytest.raises(ValueError, match="top_k 33"):
        Ablations(paths["agent"], **SMALL | {"top_k": 33})
    with pytest.raises(ValueError, match=r"cache_dir .* cannot be written into"):
        Ablations(paths["agent"], **SMALL | {"cache_dir": paths["agent"]})
    with pytest.raises(ValueError, match="choice_levels 0"):
        Ablations(paths["agent"], **SMALL | {"choice_levels": 0})
    with pytest.raises(ValueError, match="value"):
        Ablations(paths["agent"], tap="value", **SMALL)


def test_units_that_fall_below_zero_go_together_by_their_activations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    agent = CustomCNN().eval()
    found = {}
    for tap in ("conv4a.pre", "conv4a"):
        maps = unit_maps(agent, tap, torch.randint(256, (6, 64, 64, 3), dtype=torch.uint8), precision="fp32")
        trials = AblationTrials(agent, tap, None, maps, EASY, 0, 8, 30, 10, "fp32", str(tmp_path))
        values = maps if tap == "conv4a.pre" else maps > 0
        found[tap] = trials.co_activity, np.corrcoef(values.transpose(0, 1).flatten(1).numpy())
    np.testing.assert_allclose(*found["conv4a.pre"], atol=1e-5)
    np.testing.assert_allclose(*found["conv4a"], atol=1e-5)
