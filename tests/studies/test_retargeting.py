from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from environments import EnvironmentSettings, State, held_out_levels
from environments.heist import ENTITIES, label_states
from environments.levels import TRAINING_START
from interpretability.choices import GEM, Choices
from interpretability.edit_search import FoundEdit, changed_outside, seen_change
from interpretability.episodes import first_states
from interpretability.perception import cell_readers, sample
from interpretability.statistics import wilson_interval
from networks import ChannelEdit, CustomCNN, ResidualImpala, load_agent, save_weights
from networks.channel_edit import load_edit
from studies import retargeting
from studies.retargeting import Retargeting
from studies.retargeting_arms import RetargetingArms
from studies.retargeting_goal import choice_views
from studies.retargeting_search import ASKED, EditSearch, SearchSettings, choice_mazes
from studies.retargeting_tables import frontier_table, level_table, preference_table
from tests.figures import cut_off

SMALL = {
    "num_levels": 12,
    "comparison_levels": 2,
    "max_steps": 12,
    "finish_steps": 4,
    "num_environments": 12,
    "probe_mazes": 12,
}
ENDS = ("", "_low", "_high")


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    save_weights(tmp_path / "agent.safetensors", CustomCNN(), {})
    return str(tmp_path / "agent.safetensors")


def saved(folder: Path, agent: str, entity: str, tap: str = "conv2b") -> str:
    loaded = load_agent(agent)
    edit = ChannelEdit((*loaded.taps[tap], 1)[0]).requires_grad_(False)
    edit.shift[ASKED.index(entity) % edit.num_units] = 1e-9
    known = {"kind": "ChannelEdit", "agent_hash": loaded.weights_hash, "tap": tap, "entity": entity}
    save_weights(folder / f"{entity}.safetensors", edit, known)
    return str(folder / f"{entity}.safetensors")


def test_an_edit_that_does_nothing_redirects_nobody(agent: str, tmp_path: Path) -> None:
    """With the unedited agent's noise nothing differs, so that no counted maze is a success by construction."""
    files = [saved(tmp_path, agent, entity) for entity in ASKED]
    study = Retargeting(agent, edits=files, distances=(1, 1), precision="fp32", cache_dir=str(tmp_path), **SMALL)
    report = study.run()
    summary = report.summary
    counted = [entity for entity in ASKED if summary[f"retarget/{entity}/counted"]]
    assert counted, "the test needs an agent that touches something"
    for entity in counted:
        for arm in ("success", "random_direction", "random_units", "sham_position", "wrong_entity"):
            assert summary[f"retarget/{entity}/{arm}"] == 0
            assert summary.get(f"retarget/{entity}/minus_{arm}", 0) == 0
        assert summary[f"retarget/{entity}/kl"] == pytest.approx(0, abs=1e-6)
        for bound in ("entity_moved", "entity_recoloured"):
            share = summary.get(f"retarget/{entity}/{bound}", 0)
            assert summary.get(f"retarget/{entity}/minus_{bound}", 0) == -share
        assert summary[f"retarget/{entity}/units"] == summary[f"retarget/{entity}/size"] == 1
        assert summary[f"retarget/{entity}/norm"] == pytest.approx(1e-9, rel=1e-3), "one channel's shift everywhere"
        assert summary[f"retarget/{entity}/outside"] == pytest.approx(1 - 4 / 81, abs=0.01), "two cells each way"
        assert 0 <= summary[f"retarget/{entity}/random_agent"] <= 1
    read = [entity for entity in ASKED if f"retarget/{entity}/seen/conv3a" in summary]
    assert read
    for entity in read:
        for kind in ("", "_across"):
            for probe in (f"seen{kind}/conv2b", f"seen{kind}/conv3a", f"seen{kind}_others/conv3a", f"pursued{kind}"):
                before = summary[f"retarget/{entity}/{probe}_before"]
                assert summary[f"retarget/{entity}/{probe}"] == before
                assert summary[f"retarget/{entity}/{probe}_random_direction"] == before, "as small as the edit"
    for entity in counted:
        arms = {arm: [0.0, 0.0, 0.0] for arm in ("edit", "agent of random weights", "no edit, other noise")}
        for name, arm, _, mazes, share, _, _, nothing in report.tables["directions"].rows:
            if name == entity and arm in arms:
                arms[arm] = [sum(pair) for pair in zip(arms[arm], (mazes, mazes * share, mazes * nothing), strict=True)]
        mazes, hits, nothing = arms["edit"]
        assert mazes == arms["no edit, other noise"][0] == summary[f"retarget/{entity}/counted"]
        assert (hits, nothing) == (0, 0)
        share = arms["agent of random weights"][1] / mazes
        assert share == pytest.approx(summary[f"retarget/{entity}/random_agent"])
    for entity, units, _, norm, outside, kl, *_ in report.tables["edits"].rows:
        found = [summary[f"retarget/{entity}/{name}"] for name in ("units", "norm", "outside", "kl")]
        assert [units, norm, outside, kl] == found
    assert len(report.tables["edits"].rows) == len(ASKED)
    assert "How large are the edits?" in report.pages["retargeting"]
    assert report.tables["levels"].rows == [], "as small a shift is lost in float32"
    assert "edit at conv2b" in report.figures["arms"].axes[0].get_title()
    assert not [words for figure in report.figures.values() for words in cut_off(figure)]
    assert "An edit at the tap conv2b" in report.pages["retargeting"]
    for entity in counted:
        share = f"{100 * summary[f'retarget/{entity}/success']:.0f} ("
        assert (
            f"Sent after the {entity.replace('_', ' ')}, it touches that first in {share}"
            in report.pages["retargeting"]
        )
    assert set(report.films) == set(counted)
    assert "Did it go where it was sent?" in report.pages["retargeting"]


def test_one_entity_is_asked_for_in_the_same_mazes_with_the_same_outcome(agent: str, tmp_path: Path) -> None:
    files = [saved(tmp_path, agent, entity) for entity in ASKED]
    known: dict[str, Any] = SMALL | {"edits": files, "distances": (1, 1), "precision": "fp32"}
    every = Retargeting(agent, cache_dir=str(tmp_path / "every"), **known).run()
    entity = max(ASKED, key=lambda name: every.summary[f"retarget/{name}/counted"])
    alone = Retargeting(agent, asked=(entity,), cache_dir=str(tmp_path / "alone"), **known).run()
    of_mazes = {"retarget/levels", *(f"retarget/{name}{end}" for name in ("competence", "touched") for end in ENDS)}
    of_entity = {name: value for name, value in every.summary.items() if name.startswith(f"retarget/{entity}/")}
    assert len(of_entity) > 20
    assert {name: value for name, value in alone.summary.items() if name not in of_mazes} == of_entity
    bases = first_states(held_out_levels("test", 12), EnvironmentSettings())
    pairs = [pair for _, pair in choice_mazes(bases, 0, (1, 1))]
    assert alone.summary["retarget/levels"] == sum(entity in pair for pair in pairs) < 12
    assert set(alone.films) == {entity}


def test_shares_of_tables_have_intervals() -> None:
    touched = np.array([ENTITIES.index(name) for name in ("blue_key", "gem", "gem")] + [-1])
    (row,) = preference_table([("blue_key", "gem")] * 4, touched).rows
    assert row == ["blue_key", "gem", 4, *wilson_interval(1, 4), *wilson_interval(2, 4), *wilson_interval(1, 4)]
    peaks = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.5, -1.0])
    assert level_table({"gem": peaks}).rows == [["gem", 2, 3.0, -1.0], ["gem", 1, 2.0, 2.5]]
    assert level_table({"gem": peaks}, most=1).rows == [["gem", 2, 3.0, -1.0]]
    found = FoundEdit(ChannelEdit(1), 1, 0.5, 0.1, 0.75)
    (row,) = frontier_table({"gem": {"pool1": [found]}}, 8).rows
    assert row == ["gem", "pool1", 1, 0.5, 0.1, *wilson_interval(6, 8)]


def test_each_maze_offers_its_pair_and_nothing_else_at_once() -> None:
    bases = first_states(range(TRAINING_START, TRAINING_START + 12), EnvironmentSettings())
    for maze, pair in choice_mazes(bases, 0, (2, 6), "red_key"):
        assert "red_key" in pair
        cells = label_states([maze.to_bytes()]).cells[0]
        lying = {name for name, cell in zip(ENTITIES, cells, strict=True) if cell[0] >= 0 and "lock" not in name}
        assert lying == {*pair, "gem", "player"}
        assert isinstance(maze, State)
        assert np.array_equal(maze.grid.shape, (9, 9))


def test_goes_on_from_the_edits_and_arms_that_are_done(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SearchSettings(mazes=8, places=2, steps=3, rounds=1, played=4, unit_counts=(2, 3))
    study = Retargeting(agent, search=search, distances=(1, 1), cache_dir=str(tmp_path), **SMALL)
    first = study.run()
    assert len(first.tables["frontier"].rows) == 2 * len(ASKED)
    assert set(first.weights) == {f"edit_{entity}" for entity in ASKED}

    monkeypatch.setattr(RetargetingArms, "play", lambda *given: None)
    monkeypatch.setattr(retargeting, "choice_film", lambda *given: None)
    monkeypatch.setattr(RetargetingArms, "_play", never)
    again = Retargeting(agent, search=search, distances=(1, 1), cache_dir=str(tmp_path), **SMALL)
    assert again.run().summary == first.summary


def test_other_mazes_are_not_taken_for_those_that_were_played(agent: str, tmp_path: Path) -> None:
    """Nothing is found again of mazes that lie otherwise, or that are played longer."""
    bases = first_states(range(TRAINING_START, TRAINING_START + 3), EnvironmentSettings())
    mazes = [maze for maze, _ in choice_mazes(bases, 0, (1, 1))]
    edits = {entity: ("pool1", ChannelEdit(16)) for entity in ASKED}
    played = []
    for some, max_steps in ((mazes, 2), (mazes, 2), ([mazes[0], mazes[2], mazes[1]], 2), (mazes, 1)):
        arms = RetargetingArms(
            load_agent(agent), edits, some, settings=EnvironmentSettings(), seed=0, max_steps=max_steps, finish_steps=2,
            num_environments=3, precision="fp32", cache_dir=tmp_path,
        )  # fmt: skip
        arms.unedited()
        played.append(len(list(tmp_path.glob("*/unedited.json"))))
    assert played == [1, 1, 2, 3]


def test_channels_are_searched_up_to_the_taps_own_and_not_again(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SearchSettings(kind="channels", mazes=4, places=1, steps=2, unit_counts=(16, 2, 40))
    search = Retargeting(agent, search=settings, distances=(1, 1), cache_dir=str(tmp_path), **SMALL).searches[0]
    assert [found.size for found in search("gem")] == [2, 16]
    monkeypatch.setattr(EditSearch, "_tuning_mazes", never)
    assert [found.size for found in search("gem")] == [2, 16]


def test_mazes_to_search_on_are_those_in_which_the_agent_goes_elsewhere(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent of this test goes to the gem but in every third maze, or in all of them."""

    def search(**changes: Any) -> EditSearch:
        settings = SearchSettings(mazes=8, places=1, steps=1, rounds=0, unit_counts=(2,), **changes)
        return Retargeting(agent, search=settings, distances=(1, 1), cache_dir=str(tmp_path), **SMALL).searches[0]

    passes_by: list[bytes] = []

    def play(self: EditSearch, mazes: list[State], edits: Any, progress: str) -> Choices:
        touched = np.where(np.arange(len(mazes)) % 3 == 0, ENTITIES.index("red_key"), GEM)
        passes_by.extend(maze.to_bytes() for maze in mazes[::3])
        return Choices(touched, touched, [], [])

    monkeypatch.setattr(EditSearch, "_play", play)
    tuning, validation = search(elsewhere=True)._tuning_mazes("gem")
    found = [maze.to_bytes() for maze in [*tuning, *validation]]
    assert (len(tuning), len(validation)) == (8, 2)
    assert len(set(found)) == 10
    assert set(found) <= set(passes_by)
    assert len(passes_by) == 12  # it stopped looking as soon as there were enough
    passes_by.clear()
    tuning, validation = search(elsewhere=True)._tuning_mazes("red_key")
    assert not set(passes_by) & {maze.to_bytes() for maze in [*tuning, *validation]}
    monkeypatch.setattr(EditSearch, "_play", lambda self, mazes, *given: Choices(np.full(len(mazes), GEM), *[[]] * 3))
    tuning, validation = search(elsewhere=True)._tuning_mazes("gem")
    assert (len(tuning), len(validation)) == (8, 2)  # filled up
    # it decides what is found, so that nothing else is taken for it; files of before are still found
    assert search(elsewhere=True)._path("gem", 2) != search()._path("gem", 2)


def test_an_edit_that_is_loaded_is_measured_as_the_search_measured_it(agent: str, tmp_path: Path) -> None:
    settings = SearchSettings(mazes=48, places=16, steps=2, rounds=0, unit_counts=(3,))
    search = Retargeting(agent, search=settings, distances=(1, 1), cache_dir=str(tmp_path), **SMALL).searches[0]
    search._judged = lambda found, *given: found  # type: ignore[method-assign, assignment]
    (found,) = search("red_key")
    assert search.measure("red_key", found.edit) == (3, found.norm)


def found_by(agent: str, tmp_path: Path, **settings: Any) -> tuple[Retargeting, FoundEdit]:
    """The red key's edit of a short search at conv2b, not judged."""
    search = SearchSettings(mazes=16, places=4, rounds=0, unit_counts=(4,), **settings)
    study = Retargeting(agent, search=search, tap="conv2b", distances=(1, 1), cache_dir=str(tmp_path), **SMALL)
    study.searches[0]._judged = lambda found, *given: found  # type: ignore[method-assign, assignment]
    (found,) = study.searches[0]("red_key")
    return study, found


def test_an_edit_is_found_that_keeps_what_is_seen(agent: str, tmp_path: Path) -> None:
    """The same search with and without the penalty: what readers see changes less with it."""
    loaded = load_agent(agent)
    changes = []
    for weight in (0.0, 100.0):
        study, found = found_by(agent, tmp_path, steps=12, keep_seen=weight)
        search = study.searches[0]
        tuned = search._tuning_mazes("red_key")[0]
        views = choice_views(
            loaded, [maze.to_bytes() for maze in tuned], settings=search.settings, seed=0, num_environments=24,
            max_steps=12, precision="fp32",
        )  # fmt: skip
        readers = cell_readers([sample(loaded, views, study.map_taps)])
        frames = torch.from_numpy(views.frames)
        changes.append(seen_change(loaded, "conv2b", found.edit, frames, readers).item())
    assert changes[1] < changes[0] / 4


def test_an_edit_is_found_that_changes_less_outside_the_asked_entity(agent: str, tmp_path: Path) -> None:
    changes, folders = [], set()
    for weight in (0.0, 100.0):
        study, found = found_by(agent, tmp_path, steps=24, keep_outside=weight)
        search = study.searches[0]
        moves = search._asked(search._tuning_mazes("red_key")[0], "red_key", np.random.default_rng(0))
        changes.append(changed_outside(study.agent, "conv2b", found.edit, moves) * found.norm**2)
        folders.add(search._path("red_key", 4))
    assert changes[1] < changes[0] / 10
    assert len(folders) == 2


def test_what_is_seen_is_read_also_with_edits_found_before(agent: str, tmp_path: Path) -> None:
    loaded, path = load_agent(agent), saved(tmp_path, agent, "red_key")
    edit = load_edit(path, loaded)[2].requires_grad_(False)
    edit.shift[:] = 3.0
    save_weights(Path(path), edit, {"kind": "ChannelEdit", "tap": "conv2b", "entity": "red_key"})

    def search(*files: str) -> EditSearch:
        settings = SearchSettings(mazes=16, places=4, steps=1, unit_counts=(4,), keep_seen=1.0, seen_with=files)
        cache = str(tmp_path)
        return Retargeting(agent, search=settings, tap="conv2b", distances=(1, 1), cache_dir=cache, **SMALL).searches[0]

    across, untouched = search(path), search()
    assert across._path("gem", 4) != untouched._path("gem", 4)
    mazes = across._tuning_mazes("red_key")[0]
    play = {"settings": across.settings, "seed": 0, "num_environments": 12, "max_steps": 12, "precision": "fp32"}
    samples = []
    for edits in ([], [("conv2b", edit)]):
        views = choice_views(loaded, [maze.to_bytes() for maze in mazes], edits=edits, **play)  # type: ignore[arg-type]
        samples.append(sample(loaded, views, across.map_taps, edits=edits))
    expected, plain, found = cell_readers(samples), cell_readers(samples[:1]), across._readers(mazes)
    for tap in ("conv2b", "conv3a"):
        torch.testing.assert_close(found[tap].weight, expected[tap].weight)
        torch.testing.assert_close(untouched._readers(mazes)[tap].weight, plain[tap].weight)
        assert not torch.allclose(found[tap].weight, plain[tap].weight, atol=1e-3)
    with pytest.raises(ValueError, match=r"seen_with is for search\.keep_seen"):
        SearchSettings(seen_with=(path,))


def test_searches_several_taps_and_takes_the_earliest_that_works(agent: str, tmp_path: Path) -> None:
    settings = SearchSettings(kind="mixing", taps=("conv4a", "pool1"), unit_counts=(1,), mazes=4, places=1, steps=1)
    study = Retargeting(agent, search=settings, distances=(1, 1), cache_dir=str(tmp_path), **SMALL)
    assert [search.tap for search in study.searches] == ["pool1", "conv4a"]
    for search, reached in zip(study.searches, (0.2, 0.9), strict=True):
        size = search.agent.taps[search.tap][0]
        edit = ChannelEdit(size).requires_grad_(False)
        edit.shift[0] = 1.0
        found = [FoundEdit(edit, 1, 0.5, 0.1, reached)]
        search._fitted = lambda *given, found=found: iter(found)  # type: ignore[method-assign, misc, assignment]
        search._judged = lambda found, *given: found  # type: ignore[method-assign, assignment]
    report = study.run()
    assert {row[1] for row in report.tables["frontier"].rows} == {"pool1", "conv4a"}
    assert {known["tap"] for _, known in report.weights.values()} == {"conv4a"}
    assert "not measurable" in report.pages["retargeting"]
    assert not any("/seen" in name for name in report.summary)


def never(*given: object) -> None:
    raise AssertionError("worked out again")


def test_refuses_what_cannot_be_asked(agent: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CustomCNN ends in"):
        Retargeting(agent, tap="logits", **SMALL)
    with pytest.raises(ValueError, match="one file for each"):
        Retargeting(agent, edits=[saved(tmp_path, agent, "gem")], **SMALL)
    with pytest.raises(ValueError, match="'logits' is what CustomCNN ends in"):
        Retargeting(agent, edits=[saved(tmp_path, agent, entity, "logits") for entity in ASKED], **SMALL)
    wrongs: list[dict[str, Any]] = [
        {"kernel": 2}, {"unit_counts": ()}, {"unit_counts": (0,)}, {"rounds": -1}, {"keep": 0.0}, {"keep_seen": -1.0},
        {"keep_outside": -1.0}, {"keep_outside": 1.0, "kind": "channels"},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ValueError, match=rf"search\.{next(iter(wrong))}"):
            SearchSettings(**wrong)
    with pytest.raises(ValueError, match="num_levels 1: no maze holds gem: raise it"):
        Retargeting(agent, asked=("gem",), **SMALL | {"num_levels": 1}).run()
    for wrong, said in (
        ({"max_steps": 0}, "max_steps 0"),
        ({"distances": (6, 2)}, r"distances \[6, 2\] must rise"),
        ({"search": SearchSettings(written=(40,))}, r"search\.written .*units 0 to 15"),
        ({"search": SearchSettings(kind="channels", unit_counts=(20,))}, r"search\.unit_counts .*16 units"),
        ({"search": SearchSettings(taps=("pool1", "conv9"))}, "has no tap 'conv9'"),
        ({"map_taps": ("fc1",)}, "map_taps 'fc1' is no map of CustomCNN: choose one of conv1a.pre"),
        ({"map_taps": ()}, "map_taps is empty"),
        ({"asked": ("lock",)}, r"asked \['lock'\]: name some of blue_key, green_key, red_key, gem"),
        ({"asked": ()}, "asked"),
        ({"cache_dir": agent}, "cache_dir .* cannot be written into"),
        ({"tap": "conv4a", "search": SearchSettings(keep_seen=1.0)}, "none of map_taps lies at conv4a or behind"),
        ({"tap": "fc1", "search": SearchSettings(keep_outside=1.0)}, r"search\.keep_outside: fc1 is flat"),
        ({"goal_tap": "value"}, "goal_tap 'value' is no flat tap"),
    ):
        with pytest.raises(ValueError, match=said):
            Retargeting(agent, **SMALL | wrong)


def test_an_agent_without_the_probes_taps_is_refused_before_any_work(tmp_path: Path) -> None:
    save_weights(tmp_path / "residual.safetensors", ResidualImpala(), {})
    agent = str(tmp_path / "residual.safetensors")
    with pytest.raises(ValueError, match=r"map_taps 'conv2b' is no map of ResidualImpala: choose .*seq2\.block2"):
        Retargeting(agent, tap="seq1.block1", **SMALL)
    study = Retargeting(agent, tap="seq1.block1", map_taps=("seq2.block2",), goal_tap="fc1", **SMALL)
    assert study.searches[0].tap == "seq1.block1"
