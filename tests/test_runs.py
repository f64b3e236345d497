"""Run folders, below the command line."""

import os
import time
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer

from runs import claim_run, continue_run, join_run, readable, start_run
from tests.tiny_training import TinyData, TinyModule

CONFIG = "# made by hand\nmodel: {width: 4}\nckpt_path: null\n"


def test_versions_count_up_and_other_folders_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "a/version_old").mkdir(parents=True)
    (tmp_path / "a/version_7").mkdir()
    run = start_run(tmp_path, "a", CONFIG)
    assert run.folder == tmp_path / "a/version_8"
    assert run.version == 8
    assert (run.folder / "config.yaml").read_text() == CONFIG
    assert start_run(tmp_path, "b", CONFIG).version == 0


def test_discard_takes_away_what_the_run_made_and_no_more(tmp_path: Path) -> None:
    keep = start_run(tmp_path / "runs", "a", CONFIG)
    start_run(tmp_path / "runs", "a", CONFIG).discard()
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == ["version_0"]
    keep.release()
    again = continue_run(tmp_path / "runs", "a", CONFIG)
    assert again is not None
    again.discard()
    assert keep.folder.exists(), "a run that was there before stays"
    keep.discard()
    assert not (tmp_path / "runs").exists()


def test_where_to_go_on_from_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    start_run(tmp_path, "a", CONFIG).release()
    assert continue_run(tmp_path, "a", CONFIG.replace("width: 4", "width: 5")) is None
    run = continue_run(tmp_path, "a", CONFIG.replace("null", "auto"))
    assert run is not None
    assert run.resumed
    assert run.checkpoint is None


def test_other_ranks_join_the_run_of_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TimeoutError, match="rank 0 made no folder"):
        join_run(tmp_path, "a", CONFIG, resume=False, patience=0.0)
    first = claim_run(tmp_path, "a", CONFIG, ckpt_path="start.ckpt")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    second = claim_run(tmp_path, "a", CONFIG, ckpt_path="start.ckpt")
    assert (second.folder, second.checkpoint) == (first.folder, first.checkpoint)


def test_ranks_started_together_do_not_join_an_old_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROCGEN_LENS_RUN", raising=False)
    old = start_run(tmp_path, "a", CONFIG)
    old.release()
    long_ago = time.time() - 86_400  # the tests themselves may take an hour
    os.utime(old.folder / ".lock", (long_ago, long_ago))
    with pytest.raises(TimeoutError, match="rank 0 made no folder"):
        join_run(tmp_path, "a", CONFIG, resume=True, patience=0.0)
    again = continue_run(tmp_path, "a", CONFIG)  # rank 0 goes on with it after all
    assert again is not None
    assert join_run(tmp_path, "a", CONFIG, resume=True, patience=0.0).folder == old.folder


def test_a_rank_that_rank_zero_started_takes_the_folder_that_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROCGEN_LENS_RUN", raising=False)
    first = claim_run(tmp_path, "a", CONFIG, ckpt_path=None)
    long_ago = time.time() - 86_400  # the tests themselves may take an hour
    os.utime(first.folder / ".lock", (long_ago, long_ago))  # its data took long to prepare
    start_run(tmp_path, "a", CONFIG)  # another user's, of the same configuration
    assert join_run(tmp_path, "a", CONFIG, resume=False, patience=0.0).folder.samefile(first.folder)


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/etc", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    for claim in (start_run, continue_run):
        with pytest.raises(ValueError, match=f"--name {name!r} is no name of a folder"):
            claim(tmp_path / "runs", name, CONFIG)
    assert not any(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_into_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/a/version_0 cannot be made .*: give another --root"):
        start_run(tmp_path / "file", "a", CONFIG)
    with pytest.raises(ValueError, match=r"/proc/runs/a/version_0 cannot be made"):
        start_run(Path("/proc/runs"), "a", CONFIG)


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_steps=1, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(TinyModule(), datamodule=TinyData(4))
    for name, weights_only in (("whole", False), ("weights", True)):
        trainer.save_checkpoint(tmp_path / name, weights_only=weights_only)
    assert readable(tmp_path / "whole")
    assert not readable(tmp_path / "weights")
