import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import frontier_trainers, sae_frontier
from benchmarks.frontier_report import at_l0, compare, front, write_report
from benchmarks.frontier_trainers import Coder, Point, Samples, our_settings
from benchmarks.sae_frontier import Frontier, Results, evaluate, kinds
from datamodules import ActivationBatch
from tests.sae_training import PlantedData


def record(library: str, kind: str, l0: float, explained: float, dead: float = 0.0, tap: str = "conv4a") -> Any:
    names = {"tap": tap, "library": library, "kind": kind, "sparsity": 2.0, "learning_rate": 0.01, "steps": 100}
    values = {"l0": l0, "explained_variance": explained, "dead_fraction": dead, "l1": 1.0}
    return names | values | {"frames": 10, "levels": 5} | ({} if library == "ours" else {"version": "6.1"})


def test_ours_are_read_between_two_points_or_at_one_of_less_l0() -> None:
    own = [record("ours", "l1", 4.0, 0.9, 0.2), record("ours", "l1", 2.0, 0.8, 0.0)]
    assert at_l0(own, 3.5, "explained_variance") == pytest.approx(0.875)
    assert at_l0(own, 4.5, "explained_variance") == 0.9
    assert at_l0(own, 1.9, "explained_variance") is None
    assert at_l0([], 1.0, "l0") is None


def test_a_front_has_what_nothing_sparser_beats() -> None:
    points = [record("ours", "l1", 3, 0.9), record("ours", "l1", 2, 0.8), record("ours", "l1", 2.5, 0.7)]
    points += [record("ours", "l1", 2, 0.75), record("ours", "l1", 4, 0.9)]
    assert [(point["l0"], point["explained_variance"]) for point in front(points)] == [(2, 0.8), (3, 0.9)]


def test_each_peer_meets_its_own_kind_and_our_best() -> None:
    own = [record("ours", "l1", 2, 0.8), record("ours", "l1", 4, 0.9, 0.2), record("ours", "log", 1, 0.8)]
    own += [record("ours", "log", 3, 0.95), record("ours", "topk", 3, 1.0, tap="conv3a")]
    row, lonely = compare([*own, record("sae_lens", "l1", 3, 0.84), record("sae_lens", "topk", 3, 0.9)])
    assert (row["ours"], row["ours_dead"], row["best"]) == pytest.approx((0.85, 0.1, 0.95))
    assert (lonely["ours"], lonely["best"]) == (None, pytest.approx(0.95))


def test_report_is_written_whole(tmp_path: Path) -> None:
    records = [record("ours", "l1", 2, 0.8), record("ours", "l1", 4, 1.0), record("sae_lens", "l1", 3, 0.84, 0.5)]
    write_report(records, {"conv4a": 2.5}, tmp_path, "agent.safetensors", [0.01, 0.1])
    text = (tmp_path / "sae_frontier.md").read_text()
    assert "made this page, with SAELens 6.1 (" in text
    assert "explain at least as much in 1 (less" in text
    assert "| conv4a | sae_lens | L1 | 2 | 0.01 | 3.00 | 0.8400 | 0.9000 | +0.0600 | 0.9000 | 0.500 | 0.000 |" in text
    assert len((tmp_path / "sae_frontier.csv").read_text().splitlines()) == 4
    assert (tmp_path / "sae_frontier.png").stat().st_size > 10_000


def test_evaluation_agrees_with_plain_sums() -> None:
    rows = torch.randn(40_000, 3)
    coder = Coder(lambda acts: torch.cat([acts.relu(), torch.zeros(len(acts), 1)], 1), lambda latents: latents[:, :3])
    values = evaluate(coder, rows)
    x = rows.double().numpy()
    errors = (np.minimum(x, 0) ** 2).sum()
    assert values["explained_variance"] == pytest.approx(1 - errors / ((x - x.mean(0)) ** 2).sum())
    assert values["l0"] == pytest.approx((x > 0).sum(1).mean())
    assert values["l1"] == pytest.approx(np.maximum(x, 0).sum(1).mean())
    assert values["dead_fraction"] == 0.25


def test_everybody_gets_the_same_batches() -> None:
    data: Any = PlantedData(batches=3)
    samples = Samples(data, "planted")
    first = list(samples.normalised(5))
    again = list(samples.normalised(5))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert torch.equal(first[0], first[3]), "the next epoch"
    torch.testing.assert_close(samples.raw(first[1]), data.batch(1).activations["planted"])
    assert torch.cat(first[:3]).square().mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kind", kinds("ours"))
@pytest.mark.parametrize("tap", ["conv4a", "conv3a"])
def test_ours_learn_with_their_configurations_settings(monkeypatch: pytest.MonkeyPatch, tap: str, kind: str) -> None:
    point = Point(tap, "ours", kind, 2, 1e-2, 60)
    settings = our_settings(point)
    monkeypatch.setattr(frontier_trainers, "our_settings", lambda point: settings | {"tap": "planted"})
    data: Any = PlantedData(batch_size=512)
    coder = frontier_trainers.train(point, Samples(data, "planted"))
    values = evaluate(coder, data.sample(2_000, 7))
    assert values["explained_variance"] > 0.3
    if kind == "topk":
        assert values["l0"] <= 2


def test_finished_points_are_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Point] = []

    def train(point: Point, samples: Samples) -> Coder:
        trained.append(point)
        if len(trained) == 20:
            raise KeyboardInterrupt
        return Coder(lambda acts: acts.relu(), lambda latents: latents)

    class Data(PlantedData):
        def val_dataloader(self) -> Any:
            batch = self.batch(99)
            batch.activations = {tap: acts[:, :, None, None] for tap, acts in batch.activations.items()}
            return [batch]

    class Bar:
        def update(self) -> None: ...

        def set_description(self, text: str) -> None: ...

    def points(agent: str, finished_only: bool = False) -> list[dict[str, Any]]:
        data: Any = Data()
        bar: Any = Bar()
        return Frontier(Results(path, {"agent": agent}), data, "planted", 100, bar).points(["sae_lens"], finished_only)

    path = tmp_path / "points.jsonl"
    monkeypatch.setattr(sae_frontier, "train", train)
    with pytest.raises(KeyboardInterrupt):
        points("a")
    assert len(path.read_text().splitlines()) == 19
    path.write_text(path.read_text() + '{"key": "cut sh')
    path.write_text(path.read_text() + "\n")
    assert len(points("a", finished_only=True)) == 19
    finished = points("a")
    assert len(trained) == 34, "the one that was cut short, and the rest"
    assert len(finished) == 33
    assert {row["steps"] for row in finished} == {100}
    assert len({json.dumps(row["key"]) for row in finished}) == 33
    points("b")
    assert len(trained) == 67, "another agent"


def test_points_of_another_version_of_a_peer_are_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point, path = Point("conv4a", "sae_lens", "l1", 2.0, 1e-2, 60), tmp_path / "points.jsonl"
    unversioned = {"key": json.dumps([{}, point._asdict(), {}], sort_keys=True), "data": {}, **point._asdict()}
    path.write_text(json.dumps(unversioned) + "\n")

    def finished(installed: str | None) -> bool:
        monkeypatch.setattr(sae_frontier, "peer_version", lambda library: installed)
        results = Results(path, {})
        return results.key(point) in results.records

    assert not finished("6.1"), "of a version that nobody noted"
    Results(path, {}).add(point, {"l0": 1.0})
    assert finished("6.1")
    assert not finished("6.2")
    assert finished(None), "not installed: as it was noted last"


def test_ours_are_trained_anew_for_other_settings_or_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    results, keys = Results(Path("nowhere"), {}), set()
    peer, own = (Point("conv4a", library, "l1", 2.0, 1e-2, 60) for library in ("sae_lens", "ours"))
    for code, change in (("a", {}), ("b", {}), ("a", {"dead_window": 1})):
        settings = our_settings(own) | change
        monkeypatch.setattr(sae_frontier, "our_code", lambda code=code: code)
        monkeypatch.setattr(sae_frontier, "our_settings", lambda point, settings=settings: settings)
        keys |= {results.key(peer), results.key(own)}
    assert len(keys) == 1 + 3


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(point: Point, samples: Samples) -> tuple[Tensor, Tensor]:
        raise ModuleNotFoundError("No module named 'sae_lens'")

    monkeypatch.setitem(frontier_trainers._PEERS, "sae_lens", missing)
    data: Any = PlantedData()
    with pytest.raises(ValueError, match=r"sae_lens cannot be imported .*\[peers\]"):
        frontier_trainers.train(Point("planted", "sae_lens", "l1", 1.0, 1e-3, 10), Samples(data, "planted"))


def test_missing_peers_are_named_before_anything_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sae_frontier"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delattr(sae_frontier, "ActivationDataModule")
    with pytest.raises(SystemExit, match="2"):
        sae_frontier.main()
    assert "dictionary_learning, sae_lens not installed: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("kind", kinds("sae_lens"))
@pytest.mark.parametrize("library", ["dictionary_learning", "sae_lens"])
def test_peers_learn(library: str, kind: str) -> None:
    pytest.importorskip(library, reason="in the extra peers")
    data: Any = PlantedData(batch_size=512)
    samples = Samples(data, "planted")
    coder = frontier_trainers.train(Point("planted", library, kind, 2, 1e-2, 100), samples)
    assert evaluate(coder, data.sample(2_000, 7))["explained_variance"] > 0.3


def test_held_out_rows_are_positions_of_every_frame() -> None:
    maps = torch.arange(4 * 2 * 64, dtype=torch.float32).view(4, 2, 8, 8)

    class Data:
        def val_dataloader(self) -> Any:
            return [ActivationBatch({"conv4a": maps}, torch.tensor([5, 5, 6, 7]))]

    data: Any = Data()
    rows, seen = sae_frontier.held_out(data, "conv4a")
    assert rows.shape == (4 * 32, 2)
    assert seen == {"frames": 4, "levels": 3}
    assert torch.equal(rows[:, 1] - rows[:, 0], torch.full((128,), 64.0)), "channels of one position stay together"
    assert len(rows.unique(dim=0)) == 128
