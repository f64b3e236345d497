from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.recorder import PlaySettings
from networks import load_agent, load_sae
from studies import StreamedExamples
from tests.saved_subject import save_subject

PLAY = PlaySettings(environments=6, steps=8, random_start=4)
SETTINGS = {"num_frames": 150, "per_unit": 3, "play": PLAY, "save_every": 48, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return save_subject(tmp_path_factory.mktemp("examples"))


def study(known: dict[str, str], folder: Path, **changes: Any) -> StreamedExamples:
    return StreamedExamples(known["agent"], cache_dir=str(folder), **{**SETTINGS, **changes})


@pytest.mark.parametrize("of", ["channels", "latents", "flat"])
def test_the_examples_are_those_of_a_sort_of_all_frames(known: dict[str, str], of: str, tmp_path: Path) -> None:
    changes = {"channels": {"tap": "conv3a"}, "latents": {"sae": known["sae"]}, "flat": {"tap": "fc1"}}[of]
    made = study(known, tmp_path, units=list(range(20)), **changes)
    report = made.run()
    agent = load_agent(known["agent"])
    blocks = [made.recorder.block(index, min(48, 150 - 48 * index)) for index in range(4)]
    frames, levels = (torch.cat([block[name] for block in blocks]) for name in ("frames", "levels"))
    with torch.no_grad():
        acts = agent.forward(frames, record=(made.tap,)).activations[made.tap]
        units = load_sae(known["sae"], agent).encode(acts) if of == "latents" else acts
    scores = units.flatten(2).amax(2) if units.ndim == 4 else units
    for unit in (0, 5):
        rows = [row for row in report.tables["examples"].rows if row[0] == unit]
        expected: list[int] = []
        for place in scores[:, unit].sort(descending=True, stable=True).indices.tolist():
            if all(levels[place] != levels[other] for other in expected):
                expected.append(place)
        assert [row[4] for row in rows] == expected[:3]
        assert [row[3] for row in rows] == levels[expected[:3]].tolist()
        assert [row[2] for row in rows] == pytest.approx(scores[expected[:3], unit].tolist(), rel=1e-4)
    assert report.summary["examples/frames"] == 150
    assert report.summary["examples/units"] == 20
    assert report.pages["examples"].count("<img") == len(report.figures) == 2


def test_a_channel_that_falls_below_zero_has_examples_of_either_side(known: dict[str, str], tmp_path: Path) -> None:
    made = study(known, tmp_path, tap="conv4a.pre", units=[3], one_per_level=False, num_frames=48)
    report = made.run()
    block = made.recorder.block(0, 48)
    with torch.no_grad():
        acts = load_agent(known["agent"]).forward(block["frames"], record=("conv4a.pre",)).activations["conv4a.pre"]
    for name, scores in (("3, below 0", -acts[:, 3].amin((1, 2))), (3, acts[:, 3].amax((1, 2)))):
        rows = [row for row in report.tables["examples"].rows if row[0] == name]
        assert [row[2] for row in rows] == pytest.approx(scores.sort(descending=True).values[:3].tolist(), rel=1e-4)
    assert report.summary["examples/units"] == 2


def test_an_interrupted_stream_goes_on_where_it_was(known: dict[str, str], tmp_path: Path) -> None:
    one = {"tap": "conv4a", "units": [3]}
    whole = study(known, tmp_path / "whole", **one, diversity=0.5).run()
    interrupted = study(known, tmp_path / "parts", **one, diversity=0.5)
    update = interrupted.examples.update

    def stop(*batch: Any) -> None:
        if interrupted.examples.num_frames >= 96:
            raise KeyboardInterrupt
        update(*batch)

    interrupted.examples.update = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    again = study(known, tmp_path / "parts", **one, diversity=0.5)
    assert again.run().tables["examples"].rows == whole.tables["examples"].rows
    assert again.recorder.play == PLAY
    # more frames go on from the last whole block, fewer leave what is kept alone
    more = study(known, tmp_path / "parts", **one, diversity=0.5, num_frames=192)
    more._resume()
    assert more.examples.num_frames == 144
    fewer = study(known, tmp_path / "parts", **one, diversity=0.5, num_frames=48)
    assert fewer.run().summary["examples/frames"] == 48
    more._resume()
    assert more.examples.num_frames == 144
    other = study(known, tmp_path / "parts", **one, per_unit=2, diversity=0.5)
    other._resume()
    assert other.examples.num_frames == 0


def test_what_cannot_be_meant_is_refused(known: dict[str, str], tmp_path: Path) -> None:
    for changes, match in [
        ({}, "give tap, or sae"),
        ({"tap": "conv9"}, "no tap 'conv9'"),
        ({"tap": "value"}, "value has no channels"),
        ({"tap": "conv4a", "units": [32]}, "choose some of 0 to 31"),
        ({"tap": "conv4a", "num_frames": 0}, "num_frames 0 must be at least 1"),
        ({"tap": "conv4a", "per_unit": 0}, "at least 1 example"),
        ({"tap": "conv4a", "diversity": -1.0}, "must not be negative"),
    ]:
        with pytest.raises(ValueError, match=match):
            study(known, tmp_path, **changes)
    with pytest.raises(ValueError, match=r"cache_dir .* cannot be written into"):
        study(known, Path(known["agent"]), tap="conv4a")
